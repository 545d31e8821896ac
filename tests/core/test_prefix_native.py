"""The prefix cache on the native runner, whose tokens do not depend on their batch: everything is equal to the bit."""

from pathlib import Path

import pytest

from glass_core.checkpoint.prepared import open_prepared
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.runner import NativeRunner
from tests.core.engine_builders import DENSE, GRIFFIN, REFINED
from tests.core.prefix_traffic import CACHE, MILD, serve_alike
from tests.tiny_models import save_tiny_model

pytest.importorskip("glass_core.runners.native._native", reason="the native extension is not built")


SPARSITIES = (GRIFFIN, REFINED, MILD, DENSE)


@pytest.mark.parametrize("image_format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_statistics_plans_and_answers_are_those_without_a_cache(family: str, image_format: str, tmp_path: Path) -> None:
    image = make_image(open_prepared(save_tiny_model(tmp_path, family)), image_format)
    cached, plain = (
        serve_alike(NativeRunner(image, CACHE, num_threads=2), enable_prefix_caching=enabled, sparsities=SPARSITIES)
        for enabled in (True, False)
    )
    assert cached.bits == plain.bits
    assert (cached.answers, cached.plans) == (plain.answers, plain.plans)
    assert (cached.num_hits > 100, plain.num_hits) == (True, 0)
