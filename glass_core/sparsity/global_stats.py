"""GlobalStatistics: what is known of a model's neurons before any prompt, measured offline by `glass calibrate`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from glass_core.errors import ArtifactError, ArtifactMismatchError
from glass_core.expected_kl import REFINED, ExpectedKlTables
from glass_core.sparsity.budget import Profile
from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.manifest import ArtifactManifest
from glass_core.sparsity.refinement_table import RefinementTable

REQUIRED_NEURON_TENSORS = ("activation_l1", "activation_l2")
OPTIONAL_NEURON_TENSORS = (
    "impact_abs",
    "impact_rms",
    "mean_abs_up",
    "gate_rms",
    "gate_slope_rms",
    "mean_z",
    "mean_square_z",
    "down_norm",
)
NEURON_TENSORS = REQUIRED_NEURON_TENSORS + OPTIONAL_NEURON_TENSORS
LAYER_TENSORS = ("sensitivity",)
SIGNED_TENSORS = frozenset({"mean_z"})


@dataclass(frozen=True, slots=True, eq=False)
class GlobalStatistics:
    """Per neuron (num_layers, m) float32, per layer (num_layers,) float32; None = not measured.

    `activation_l1`, `activation_l2`: the local statistic pooled over the corpus. `impact_abs`, `impact_rms`: mean and
    root-mean-square of |z * dloss/dz|, measured together. `mean_abs_up`, `mean_z`, `mean_square_z`: E|u|, E z, E z^2;
    `gate_rms`: sqrt(E g^2), g after the activation; `gate_slope_rms`: sqrt(E (dz/dh)^2), h before it.
    `down_norm`: ||down_proj[:, j]||.
    `sensitivity`: mean KL(dense || only this layer pruned). `refinement`: the cascade's thresholds by profile.
    `expected_kl`: what answers under a profile lose, by method.
    Raises ArtifactError when a tensor has another shape, is not float32, or holds impossible values.
    """

    manifest: ArtifactManifest
    activation_l1: FloatArray
    activation_l2: FloatArray
    impact_abs: FloatArray | None = None
    impact_rms: FloatArray | None = None
    mean_abs_up: FloatArray | None = None
    gate_rms: FloatArray | None = None
    gate_slope_rms: FloatArray | None = None
    mean_z: FloatArray | None = None
    mean_square_z: FloatArray | None = None
    down_norm: FloatArray | None = None
    sensitivity: FloatArray | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    refinement: Mapping[str, RefinementTable] = field(default_factory=dict)
    expected_kl: ExpectedKlTables = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors():
            _check_tensor(name, tensor, expected_shape(self.manifest, name))
        if (self.impact_abs is None) != (self.impact_rms is None):
            raise ArtifactError("impact_abs and impact_rms are measured together: expected both or neither")
        for name, profile in self.profiles.items():
            self._check_profile(name, profile)
        for name, table in self.refinement.items():
            self._check_table(name, table)
        for name, methods in self.expected_kl.items():
            if name not in self.profiles or (REFINED in methods and name not in self.refinement):
                raise ArtifactError(f"expected_kl of profile {name!r}, {sorted(methods)}: there is no such profile")

    def tensors(self) -> Iterator[tuple[str, FloatArray]]:
        """Names and values of what was measured."""
        for name in NEURON_TENSORS + LAYER_TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor

    @property
    def has_impact(self) -> bool:
        return self.impact_abs is not None

    def _check_profile(self, name: str, profile: Profile) -> None:
        if name != profile.name:
            raise ArtifactError(f"profile {profile.name!r} is stored under another name, {name!r}")
        if profile.num_layers != self.manifest.num_layers:
            raise ArtifactError(
                f"profile {name!r}: expected {self.manifest.num_layers} layers, got {profile.num_layers}"
            )

    def _check_table(self, name: str, table: RefinementTable) -> None:
        if name not in self.profiles:
            raise ArtifactError(f"refinement of profile {name!r}: there is no such profile")
        shape = expected_shape(self.manifest, "down_norm")
        if table.weights.down.shape != shape:
            raise ArtifactError(
                f"refinement of profile {name!r}: expected weights of shape {shape}, got {table.weights.down.shape}"
            )


def expected_shape(manifest: ArtifactManifest, name: str) -> tuple[int, ...]:
    """The shape a tensor of this name must have."""
    if name in LAYER_TENSORS:
        return (manifest.num_layers,)
    return (manifest.num_layers, manifest.intermediate_size)


def check_fingerprint(statistics: GlobalStatistics, fingerprint: str) -> None:
    """Raises ArtifactMismatchError when the statistics were measured on other weights than `fingerprint`'s."""
    measured_on = statistics.manifest.fingerprint
    if measured_on != fingerprint:
        raise ArtifactMismatchError(
            f"the artifact was measured on {statistics.manifest.model_name!r} with fingerprint {measured_on}, "
            f"the loaded model has fingerprint {fingerprint}; run `glass calibrate` for this model"
        )


def _check_tensor(name: str, tensor: FloatArray, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ArtifactError(f"{name}: expected shape {shape}, got {tensor.shape}")
    if tensor.dtype != np.float32:
        raise ArtifactError(f"{name}: expected float32, got {tensor.dtype}")
    if not np.isfinite(tensor).all():
        raise ArtifactError(f"{name}: contains NaN or infinity")
    if name not in SIGNED_TENSORS and (tensor < 0).any():
        raise ArtifactError(f"{name}: expected non-negative values, the smallest is {tensor.min()}")
