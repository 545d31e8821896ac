"""Our extension of OpenAI's API: six flat request fields, three headers, one report."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from glass_core.api import MAX_SPARSITY, SparsityReport, StepCost

Sparsity = Annotated[float, Field(ge=0, le=MAX_SPARSITY, allow_inf_nan=False)]
MaxKl = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Lambda = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Method = Literal["a_glass", "i_glass", "griffin", "global_only", "magnitude", "random", "dense"]

SPARSITY_HEADER = "X-Glass-Sparsity"
LAMBDA_HEADER = "X-Glass-Lambda"
REFINE_HEADER = "X-Glass-Refine"


class GlassFields(BaseModel):
    """Request fields of GLASS (arXiv 2508.14302). With the official clients they go into `extra_body`."""

    glass_sparsity: Sparsity | Literal["auto"] | None = Field(
        None,
        description="Share of the feed-forward weights skipped per decoded token, 0 to 0.95. 0 is the dense model, "
        "`auto` the largest whole percent whose expected KL is at most glass_max_kl. "
        "Default: the header X-Glass-Sparsity, else the server's setting.",
    )
    glass_max_kl: MaxKl | None = Field(
        None,
        description="With glass_sparsity `auto`: how far answers may be expected to be from the dense model's, as "
        "KL divergence in nats per token, measured on held-out text. Default: the server's setting.",
    )
    lambda_: Lambda | None = Field(
        None,
        alias="lambda",
        description="Weight of the model's own neuron ranking against this prompt's: 0 looks at the prompt only, "
        "1 ignores it. Refined answers rank nothing: with glass_refine true it is an error. Default: the header "
        "X-Glass-Lambda, else the server's setting, else the budget profile's.",
    )
    glass_method: Method | None = Field(
        None, description="How neurons are chosen. Default: the server's setting. `dense` chooses none."
    )
    glass_profile: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="How the kept neurons are spread over the layers: `uniform`, `sensitivity`, `tuned`."
    )
    glass_refine: bool | None = Field(
        None,
        description="Whether every token chooses among all neurons while it is computed (closer to the dense model at "
        "the same glass_sparsity), rather than the prompt once for the whole answer. Default: the header "
        "X-Glass-Refine, else false for requests with a glass_method or lambda of their own, else the server's "
        "setting.",
    )


class GlassReport(BaseModel):
    """What GLASS really did, computed from the plan that was used. Requests that run together may be computed over the
    same neurons, more than the plan of one asks for; `*_planned` says what the plan alone takes. With several choices,
    `flops_*` and `selection_seconds` are sums over them, the ratios follow from the sums, and the rest is the first
    choice's."""

    method: str
    sparsity_requested: float = Field(description="what was asked, or what `auto` chose")
    max_kl: float | None = Field(description="the bound that `auto` chose by; null where a number was asked for")
    expected_kl: float | None = Field(
        description="KL divergence from the dense model in nats per token that such answers had when the model was "
        "calibrated; 0 for the dense model, null where it was not measured"
    )
    sparsity: float = Field(
        description="share of neurons left out, differs from the requested one by rounding; refined: share of the "
        "feed-forward weights that the decoded tokens did not read"
    )
    lambda_: float | None = Field(alias="lambda", description="null where nothing is fused, as in refined answers")
    profile: str
    refine: bool = Field(description="whether each token chose its own neurons")
    ffn_flops_saved_ratio: float = Field(description="share of the feed-forward FLOPs saved, prefill included")
    flops_saved_ratio: float = Field(description="share of all FLOPs saved, prefill included")
    ffn_flops_saved_ratio_planned: float = Field(description="the same of the plan alone, whatever ran beside it")
    flops_saved_ratio_planned: float = Field(description="the same of the plan alone, whatever ran beside it")
    flops_dense: int = Field(description="what the dense model would have cost on the same tokens")
    flops_computed: int = Field(description="what was computed")
    flops_planned: int = Field(description="what would have been computed under the plan alone")
    selection_seconds: float = Field(description="time spent choosing neurons")


def report_json(reports: Sequence[SparsityReport]) -> dict[str, Any]:
    """The `glass` object of an answer whose choices have these reports; see `GlassReport`."""
    first = reports[0]
    cost = sum((report.cost for report in reports), StepCost())
    return {
        "method": first.method,
        "sparsity_requested": first.sparsity_requested,
        "max_kl": first.max_kl,
        "expected_kl": first.expected_kl,
        "sparsity": first.sparsity,
        "lambda": first.lambda_,
        "profile": first.profile,
        "refine": first.refine,
        "ffn_flops_saved_ratio": _saved_ratio(cost.ffn_flops_dense, cost.ffn_flops_computed),
        "flops_saved_ratio": _saved_ratio(cost.flops_dense, cost.flops_computed),
        "ffn_flops_saved_ratio_planned": _saved_ratio(cost.ffn_flops_dense, cost.ffn_flops_planned),
        "flops_saved_ratio_planned": _saved_ratio(cost.flops_dense, cost.flops_planned),
        "flops_dense": cost.flops_dense,
        "flops_computed": cost.flops_computed,
        "flops_planned": cost.flops_planned,
        "selection_seconds": sum(report.selection_seconds for report in reports),
    }


def _saved_ratio(dense: int, computed: int) -> float:
    return (dense - computed) / dense if dense else 0.0
