"""What a calibration run is asked for. Two runs with equal settings on equal weights make equal artifacts."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from glass_core.errors import ConfigurationError

NULL_SOURCE, CHAT_SOURCE = "null", "chat"
SENSITIVITY_DENSITY = 0.5
NUM_REFINEMENT_SEQUENCES = 8
NUM_EXPECTED_KL_SEQUENCES = 12

# Work folders of another format are not resumed: raise it whenever a partial result changes its meaning.
_WORK_FORMAT = 5


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """`source` is null, chat or a text file's path. `num_sequences` sequences of up to `sequence_length` tokens (the
    template prefix not counted) give the statistics, `num_held_out` more the layer sensitivities. `chat_template` names
    the template that chats are written under in place of the model's own: a Jinja file, or one of the checkpoint's."""

    source: str = NULL_SOURCE
    seed: int = 0
    num_sequences: int = 24
    sequence_length: int = 192
    num_held_out: int = 4
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_sequences", "num_held_out"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sequence_length < 8:
            raise ConfigurationError(f"sequence_length must be at least 8, got {self.sequence_length}")
        if self.file is not None and not self.file.is_file():
            raise ConfigurationError(
                f"source must be {NULL_SOURCE}, {CHAT_SOURCE} or a text file, got {self.source!r}: no such file"
            )

    @property
    def file(self) -> Path | None:
        """The text file, None when the model writes its own corpus."""
        return None if self.source in (NULL_SOURCE, CHAT_SOURCE) else Path(self.source)

    @property
    def source_name(self) -> str:
        """What the manifest says: a file's name without its folder."""
        return self.source if self.file is None else self.file.name

    @property
    def template_name(self) -> str | None:
        """What the manifest says of the template: a file's name without its folder."""
        return None if self.chat_template is None else Path(self.chat_template).name

    def for_refinement(self) -> "CalibrationSettings":
        """Of the chats that refinement's thresholds are measured on when the corpus itself is none."""
        total = min(NUM_REFINEMENT_SEQUENCES, self.num_sequences)
        return replace(self, source=CHAT_SOURCE, num_sequences=max(total - 1, 1), num_held_out=1)

    def for_expected_kl(self, seed: int, *, chats: bool) -> "CalibrationSettings":
        """Of the text, drawn with a seed of its own, that expected KL is measured on."""
        total = max(min(NUM_EXPECTED_KL_SEQUENCES, self.num_sequences), 2)
        source = CHAT_SOURCE if chats else self.source
        return replace(self, source=source, seed=seed, num_sequences=total - 1, num_held_out=1)

    @property
    def total_sequences(self) -> int:
        return self.num_sequences + self.num_held_out

    def key(self, fingerprint: str) -> str:
        """Identity of the run: equal keys mean partial results may be reused."""
        template = None if self.chat_template is None else Path(self.chat_template)
        contents = [
            hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None
            for file in (self.file, template)
        ]
        parts = [_WORK_FORMAT, fingerprint, asdict(self), *contents]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def command(self, model_name: str) -> str:
        """The command that repeats the run."""
        template = "" if self.template_name is None else f" --chat-template {self.template_name}"
        return (
            f"glass calibrate {model_name} --source {self.source_name} --seed {self.seed} "
            f"--num-sequences {self.num_sequences} --sequence-length {self.sequence_length} "
            f"--num-held-out {self.num_held_out}{template}"
        )
