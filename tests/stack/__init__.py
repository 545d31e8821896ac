"""Tests of the deployment files, most of them against a real Prometheus."""
