"""glass_core: the library behind the glass server. Start with `glass_core.api`, the contract everything else speaks."""

__version__ = "0.1.0"
