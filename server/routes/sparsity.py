"""What sparsity a request gets: its own fields, else the headers, else the server's settings; `auto` becomes a number.

The number for `auto` is the largest sparsity whose expected KL, measured when the model was calibrated, is at most the
bound. Resolved once per request, here: the engine only sees numbers.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from glass_core.api import DENSE_METHOD, EngineInfo, SparsityParams
from glass_core.errors import InvalidRequestError
from glass_core.expected_kl import REFINED, ExpectedKl
from server.config import Settings
from server.deps import GlassHeaders
from server.schemas.glass import GlassFields

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SparsityChoice:
    """The sparsity of one request to a loaded model."""

    body: GlassFields
    headers: GlassHeaders
    settings: Settings
    info: EngineInfo

    def params(self, seed: int) -> SparsityParams:
        """Raises InvalidRequestError for a bound without `auto`, for an `auto` that nothing was measured for, and for a
        lambda with refinement."""
        asked = self.headers.sparsity if self.body.glass_sparsity is None else self.body.glass_sparsity
        wanted: float | str = self.settings.default_sparsity if asked is None else asked
        params = self._params(seed)
        if isinstance(wanted, str):
            return self._automatic(params, is_asked=asked is not None)
        if self.body.glass_max_kl is not None:
            raise InvalidRequestError(
                f"glass_max_kl is a bound for glass_sparsity 'auto', but glass_sparsity is {wanted}; leave one out",
                param="glass_max_kl",
            )
        params = replace(self._decided(params, wanted), sparsity=wanted)
        return replace(params, expected_kl=_expected_kl(params, self._expected(params)))

    def problem(self) -> str | None:
        """Why nothing is known by which `auto` could choose; None where something is, or nothing needs to be."""
        params = self._decided(self._params(seed=0), None)
        if params.method == DENSE_METHOD or self._expected(params) is not None:
            return None
        return self._unmeasured(params)

    def _automatic(self, params: SparsityParams, *, is_asked: bool) -> SparsityParams:
        max_kl = self.settings.default_max_kl if self.body.glass_max_kl is None else self.body.glass_max_kl
        params = self._decided(params, None)
        expected = self._expected(params)
        problem = self.problem() if is_asked else None
        if problem is not None:
            raise InvalidRequestError(
                f"glass_sparsity 'auto' is unavailable: {problem}; ask for a number", param="glass_sparsity"
            )
        sparsity = 0.0 if expected is None else expected.automatic_sparsity(max_kl)
        params = replace(params, sparsity=sparsity, refine=params.refine and sparsity > 0, max_kl=max_kl)
        return replace(params, expected_kl=_expected_kl(params, expected))

    def _params(self, seed: int) -> SparsityParams:
        """Everything but sparsity and refinement; lambda only where the request has one of its own."""
        body, settings = self.body, self.settings
        return SparsityParams(
            lambda_=_first(body.lambda_, self.headers.lambda_),
            method=settings.default_method if body.glass_method is None else body.glass_method,
            profile=_first(body.glass_profile, settings.default_profile) or self.info.default_profile,
            seed=seed,
        )

    def _decided(self, params: SparsityParams, sparsity: float | None) -> SparsityParams:
        """With refinement, or the server's lambda, which is for static rankings. `sparsity` None is one still to be
        chosen: whether a lambda is refused does not depend on it."""
        if self._refine(params, sparsity):
            refined = replace(params, refine=True)
            refined.check_lambda()
            return refined
        return replace(params, lambda_=_first(params.lambda_, self.settings.default_lambda))

    def _refine(self, params: SparsityParams, sparsity: float | None) -> bool:
        """What was asked for, where it was; a request that names a static ranking gets this ranking."""
        body, settings = self.body, self.settings
        asked = _first(body.glass_refine, self.headers.refine)
        if asked is not None or sparsity == 0.0 or params.method == DENSE_METHOD:
            return bool(asked)
        if body.glass_method is not None or params.lambda_ is not None:
            return False
        if settings.refine is not None:
            return settings.refine
        if settings.has_static_defaults:
            return False
        measured = self.info.refinement.get(params.profile, 0.0)
        return measured > 0.0 if sparsity is None else sparsity <= measured

    def _expected(self, params: SparsityParams) -> ExpectedKl | None:
        """What was measured for such answers; None for nothing. Static plans were measured with the profile's own
        lambdas."""
        if params.lambda_ is not None:
            return None
        name = REFINED if params.refine else params.method
        return self.info.expected_kl.get(params.profile, {}).get(name)

    def _unmeasured(self, params: SparsityParams) -> str:
        if not self.info.expected_kl:
            return "this model's artifact has no expected KL (`glass calibrate MODEL --only expected-kl`)"
        how = "glass_refine true" if params.refine else f"glass_method {params.method!r}"
        lambda_ = "" if params.lambda_ is None else f" and lambda {params.lambda_:g}"
        return f"no KL was measured for glass_profile {params.profile!r} with {how}{lambda_}"


def _expected_kl(params: SparsityParams, expected: ExpectedKl | None) -> float | None:
    """Of these parameters: 0 for the dense model, None where nothing was measured."""
    if params.is_dense:
        return 0.0
    return None if expected is None else expected.at(params.sparsity)


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)
