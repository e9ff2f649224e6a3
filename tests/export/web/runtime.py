"""Where `make test-web` puts the npm package onnxruntime-web."""

from pathlib import Path

RUNTIME = Path(__file__).parents[3] / ".venv" / "web" / "node_modules" / "onnxruntime-web"
