"""Tuning profiles: several objectives with conflicting gradients, combined into one. Needs the extra `tune`."""
