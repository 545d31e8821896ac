"""EleutherAI's evaluation harness (`lm_eval`, not installed with us) on a model under a condition, in process.

from lm_eval import simple_evaluate
simple_evaluate(model=lm_eval_model(task_model), tasks=[...])
"""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.task_scoring import TaskModel

_DEFAULT_MAX_TOKENS = 256


class Request(Protocol):
    """The harness's Instance, as far as it is read here."""

    @property
    def args(self) -> tuple[Any, ...]: ...


def lm_eval_model(task_model: TaskModel) -> Any:
    """An `lm_eval.api.model.LM`. Raises ConfigurationError when the harness is not installed."""
    try:
        base: Any = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ConfigurationError(
            "lm_eval is not installed; `pip install lm-eval` in this environment brings it"
        ) from error

    class GlassLM(base):  # type: ignore[misc]  # the base is known at run time only
        """Requests answered one by one."""

        def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
            return [task_model.likelihood(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
            raise ConfigurationError(
                "rolling likelihoods (perplexity of whole documents) have no prompt to choose neurons from"
            )

        def generate_until(self, requests: Sequence[Request]) -> list[str]:
            return [_generate(task_model, *request.args) for request in requests]

    return GlassLM()


def _generate(task_model: TaskModel, context: str, options: dict[str, Any]) -> str:
    """Greedy, whatever temperature is asked for is refused."""
    if options.get("do_sample", False) or options.get("temperature", 0.0):
        raise ConfigurationError(f"only greedy generation is evaluated, got {options}")
    until = options.get("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    return task_model.write(context, until=stops, max_tokens=int(options.get("max_gen_toks", _DEFAULT_MAX_TOKENS)))
