"""Package CoLLAP: its three packages and the command `collap`. The scripts (train.py, ...) run from a clone."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="collap",
    version="0.1.0",
    description="CoLLAP: contrastive long-form language-audio pretraining, on Hugging Face transformers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["modeling_collap", "processing", "collap", "collap.*"]),
    package_data={
        "collap.corpora": ["*.md", "prompts/*.txt"],
        "collap.evaluation": ["probe_clips/*", "suites/*"],
        "collap.hub": ["*.md", "spaces/*/*"],
        "collap.search.serve": ["page/*"],
    },
    entry_points={"console_scripts": ["collap = collap.cli:main"]},
    install_requires=[
        "torch>=2.11",
        "torchaudio>=2.11",
        "transformers>=5.23,<6",
        "safetensors>=0.5",
        "huggingface_hub>=2",
        "jinja2>=3",
        "numpy>=2.0",
        "av>=14",
        "soundfile>=0.13",
        "pyyaml>=6",
    ],
    extras_require={
        "train": [
            "accelerate>=1.10",
            "datasets>=5",
            "evaluate>=0.4.6",
            "matplotlib>=3.8",
            "mir_eval>=0.8",
            "peft>=0.21",
            "tensorboard>=2.16",
            "tqdm>=4.66",
        ],
        "export": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
        "sentence-transformers": ["sentence-transformers>=6.2"],
        "int8": ["torchao>=0.18"],
        "search": ["datasets>=5", "mutagen>=1.47", "tqdm>=4.66"],
        "engine": ["lancedb>=0.40"],
        "serve": ["datasets>=5", "fastapi>=0.120", "mutagen>=1.47", "tqdm>=4.66", "uvicorn>=0.38"],
        "probe": ["scikit-learn>=1.5"],
        "browser": ["playwright>=1.50"],  # drives a Chromium that is on the machine
        "test": [
            "httpx>=0.28",
            "lancedb>=0.40",
            "mteb>=2.26",
            "pytest>=8",
            "pytrec-eval-terrier>=0.5",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "scikit-learn>=1.5",
            "trackio>=0.43",
            "wandb>=0.31",
        ],
    },
)
