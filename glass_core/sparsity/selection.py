"""PlanSelector: from a request's sparsity parameters and its prompt's statistics to a SparsityPlan, once per request.

Rank both sides, fuse them by lambda, keep each layer's budget. The model's side is ranked once per loaded model.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

from glass_core.api import DENSE_METHOD, MAX_SPARSITY, SparsityParams
from glass_core.errors import ArtifactMismatchError, EngineFailureError, InvalidRequestError, MissingStatisticsError
from glass_core.expected_kl import REFINED, ExpectedKl
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import (
    SENSITIVITY,
    TUNED,
    UNIFORM,
    Profile,
    layer_budgets,
    sensitivity_profile,
    uniform_profile,
)
from glass_core.sparsity.choice import Choice, NeuronChooser, choose_neurons
from glass_core.sparsity.local_stats import FloatArray, LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.ranking import Ranks, UnrankableError, ranks
from glass_core.sparsity.refiner import Refiner
from glass_core.sparsity.selectors import load_selectors
from glass_core.sparsity.selectors.base import ModelEvidence, Need, PromptEvidence, Selector

DEFAULT_LAMBDA = 0.5
NUM_REMEMBERED_BUDGETS = 64

_HOW_TO_MEASURE = {
    Need.ACTIVATION: "activation statistics: `glass calibrate MODEL` makes them",
    Need.IMPACT: "impact statistics: `glass calibrate MODEL` makes them",
}
_SENSITIVITY_MISSING = "needs layer sensitivities: `glass calibrate MODEL` makes them"


class PlanSelector:
    """Selects neurons for one loaded model. `select` belongs to one thread; everything else only reads.

    `statistics` is the model's artifact, None without one (methods that need it are then unavailable).
    `magnitudes()` gives the `magnitude` method's scores and is called at most once. `selectors` replaces the methods
    found in `selectors/`, to compare variants of them. `choose` is a runner's own NeuronChooser, None = the reference.
    Raises ArtifactMismatchError when the statistics are those of a model of another size.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        intermediate_size: int,
        statistics: GlobalStatistics | None,
        magnitudes: Callable[[], FloatArray],
        selectors: Mapping[str, Selector] | None = None,
        runner_refines: bool = True,
        choose: NeuronChooser | None = None,
    ) -> None:
        self._shape = (num_layers, intermediate_size)
        _check_size(statistics, self._shape)
        self._selectors = load_selectors() if selectors is None else selectors
        self._model = ModelEvidence(statistics, magnitudes)
        self._unavailable = _unavailable_methods(self._selectors, self._model)
        self._profiles = _available_profiles(num_layers, statistics)
        # a request asks for its budgets several times, and a server's requests are mostly alike
        self._budgets = lru_cache(maxsize=NUM_REMEMBERED_BUDGETS)(self._shared_budgets)
        self._refiner = Refiner(num_layers, intermediate_size, statistics, runner_refines=runner_refines)
        self._choose = choose_neurons if choose is None else choose
        self._model_ranks: dict[str, Ranks] = {}
        self._reference = None if statistics is None else ranks(statistics.activation_l1)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that can be served now; `dense` first, always."""
        return (DENSE_METHOD, *(name for name in self._selectors if name not in self._unavailable))

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Known methods that cannot be served, and why."""
        return self._unavailable

    @property
    def profiles(self) -> tuple[str, ...]:
        """Budget profiles that can be served now."""
        return tuple(self._profiles)

    @property
    def default_profile(self) -> str:
        """The best profile there is for requests that name none: a tuned one is written only where it beats measured
        sensitivities, and these beat the paper's uniform."""
        return next((name for name in (TUNED, SENSITIVITY) if name in self._profiles), UNIFORM)

    @property
    def refinable(self) -> Mapping[str, float]:
        """Profiles whose plans can be refined, and up to which sparsity."""
        return self._refiner.max_sparsities

    @property
    def expected_kl(self) -> dict[str, dict[str, ExpectedKl]]:
        """What answers lose under the profiles and methods that can be served."""
        if self._model.statistics is None:
            return {}
        return {
            profile: served
            for profile, methods in self._model.statistics.expected_kl.items()
            if (served := {name: methods[name] for name in methods if self._serves(profile, name)})
        }

    def _serves(self, profile: str, name: str) -> bool:
        return profile in self.refinable if name == REFINED else name in self.methods

    @property
    def refinement_problem(self) -> str | None:
        """Why no plan can be refined; None when some can."""
        return self._refiner.problem

    def needs_statistics(self, params: SparsityParams) -> bool:
        """Whether `select` looks at the prompt: a refined plan's pool is all neurons, whatever the prompt was."""
        return not params.is_dense and not params.refine

    def check(self, params: SparsityParams) -> None:
        """Raises InvalidRequestError or MissingStatisticsError, naming the request's field, when it cannot be served.

        A request that ends up dense needs no statistics, whatever its method.
        """
        if params.method != DENSE_METHOD and params.method not in self._selectors:
            known = ", ".join((DENSE_METHOD, *self._selectors))
            raise InvalidRequestError(
                f"unknown glass_method {params.method!r}; known methods: {known}", param="glass_method"
            )
        _check_range("glass_sparsity", params.sparsity, MAX_SPARSITY)
        if params.lambda_ is not None:
            _check_range("lambda", params.lambda_, 1.0)
        params.check_lambda()
        self._check_profile(params)
        if params.refine and not params.is_dense:
            self._refiner.check(params)
        elif not params.is_dense and params.method in self._unavailable:
            raise MissingStatisticsError(
                f"glass_method {params.method!r} is unavailable: it {self._unavailable[params.method]}",
                param="glass_method",
            )

    def budgets(self, params: SparsityParams) -> tuple[int, ...] | None:
        """Neurons each layer will keep; None when the request runs densely (also when nothing is left to prune)."""
        self.check(params)
        if params.is_dense:
            return None
        return self._refiner.budgets if params.refine else self._budgets(params.density, params.profile)

    def effective_lambda(self, params: SparsityParams) -> float | None:
        """The lambda that counts (mean over layers where the profile has its own); None when nothing is fused."""
        self.check(params)
        if params.is_dense or params.refine or not self._selectors[params.method].fuses:
            return None
        lambdas = self._lambdas(params)
        return lambdas[0] if len(set(lambdas)) == 1 else sum(lambdas) / len(lambdas)

    def select(self, params: SparsityParams, local: LocalStatistics | None) -> SparsityPlan | None:
        """The request's plan, from the statistics of its whole prompt where these are needed; None = it runs densely.

        Raises what `check` raises; EngineFailureError when the prompt's statistics are NaN or infinite; ValueError
        when they are missing or of another size (a fault of the caller).
        """
        budgets = self.budgets(params)
        if budgets is None:
            return None
        if params.refine:
            return self._refiner.plan(params)
        if local is None:
            raise ValueError(f"method {params.method!r} needs statistics of the prompt, got none")
        if local.sum_abs.shape != self._shape:
            raise ValueError(f"expected local statistics of shape {self._shape}, got {local.sum_abs.shape}")
        neurons, global_overlap = self._best(params, local, budgets)
        return SparsityPlan(
            method=params.method,
            profile=params.profile,
            lambda_=self.effective_lambda(params),
            sparsity_requested=params.sparsity,
            intermediate_size=self._shape[1],
            neurons=neurons,
            global_overlap=global_overlap,
        )

    def _shared_budgets(self, density: float, profile: str) -> tuple[int, ...] | None:
        budgets = layer_budgets(density, self._profiles[profile], self._shape[1])
        return None if sum(budgets) == self._shape[0] * self._shape[1] else budgets

    def _best(self, params: SparsityParams, local: LocalStatistics, budgets: tuple[int, ...]) -> Choice:
        scores = self._score_prompt(params, local)
        model_ranks = self._rank_model(params.method)
        assert scores is not None or model_ranks is not None, f"method {params.method!r} scores nothing"
        try:
            return self._choose(scores, model_ranks, self._lambdas(params), budgets, self._reference)
        except UnrankableError as error:
            raise EngineFailureError(f"cannot select neurons for this prompt: {error}") from error

    def _score_prompt(self, params: SparsityParams, local: LocalStatistics) -> FloatArray | None:
        selector = self._selectors[params.method]
        if Need.LOCAL in selector.needs and local.num_tokens < 1:
            raise ValueError(f"method {params.method!r} selects by the prompt, but its statistics cover no token")
        return selector.prompt_scores(PromptEvidence(local, params.seed))

    def _rank_model(self, method: str) -> Ranks | None:
        """Ranks of the method's global side, computed on first use: `magnitude` reads every weight."""
        if method not in self._model_ranks:
            scores = self._selectors[method].model_scores(self._model)
            if scores is None:
                return None
            self._model_ranks[method] = self._ranks_of(scores)
        return self._model_ranks[method]

    def _ranks_of(self, scores: FloatArray) -> Ranks:
        """One array for a side that is the reference too: it is read twice per selection, once from memory."""
        if self._reference is not None and scores is self._model.artifact().activation_l1:
            return self._reference
        return ranks(scores)

    def _lambdas(self, params: SparsityParams) -> tuple[float, ...]:
        """Lambda of every layer: the request's, else the profile's, else the default."""
        if params.lambda_ is not None:
            return (params.lambda_,) * self._shape[0]
        return self._profiles[params.profile].lambdas or (DEFAULT_LAMBDA,) * self._shape[0]

    def _check_profile(self, params: SparsityParams) -> None:
        if params.profile in self._profiles:
            return
        if params.profile == SENSITIVITY:
            if params.is_dense:
                return
            raise MissingStatisticsError(
                f"glass_profile {SENSITIVITY!r} is unavailable: it {_SENSITIVITY_MISSING}", param="glass_profile"
            )
        raise InvalidRequestError(
            f"unknown glass_profile {params.profile!r}; known profiles: {', '.join(self._profiles)}",
            param="glass_profile",
        )


def _check_size(statistics: GlobalStatistics | None, shape: tuple[int, int]) -> None:
    if statistics is None:
        return
    measured = (statistics.manifest.num_layers, statistics.manifest.intermediate_size)
    if measured != shape:
        raise ArtifactMismatchError(
            f"the artifact has {measured[0]} layers of {measured[1]} neurons, the model {shape[0]} of {shape[1]}"
        )


def _check_range(param: str, value: float, highest: float) -> None:
    if not 0.0 <= value <= highest:  # also refuses NaN
        raise InvalidRequestError(f"{param} must lie in [0, {highest:g}], got {value}", param=param)


def _unavailable_methods(selectors: Mapping[str, Selector], model: ModelEvidence) -> dict[str, str]:
    reasons = {}
    for name, selector in selectors.items():
        missing = sorted(_HOW_TO_MEASURE[need] for need in selector.needs - model.available)
        if missing:
            reasons[name] = f"needs {'; '.join(missing)}"
    return reasons


def _available_profiles(num_layers: int, statistics: GlobalStatistics | None) -> dict[str, Profile]:
    """Uniform always; sensitivity wherever it was measured; then the artifact's own, which win."""
    profiles = {UNIFORM: uniform_profile(num_layers)}
    if statistics is None:
        return profiles
    if statistics.sensitivity is not None:
        profiles[SENSITIVITY] = sensitivity_profile(statistics.sensitivity)
    return profiles | dict(statistics.profiles)
