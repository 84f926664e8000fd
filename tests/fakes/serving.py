"""serving's document, and a catalogue to read it with: a local and a hosted model, and servers that are attached."""

from __future__ import annotations

from typing import Any

from serving.catalogue import Attached, Catalogue, Model, Provider, Site

CATALOGUE = Catalogue(
    models={
        "small": Model(name="small", place="local", lanes=("private",), context=4096, output=64),
        "big": Model(
            name="big", place="hosted", lanes=("frontier",), context=4096, output=64, provider="far", provider_model="b"
        ),
    },
    providers={
        "far": Provider(enabled=True, base_url="https://api.provider.example/v1"),
        "near": Provider(base_url="http://127.0.0.1:4000/v1"),
        "odd": Provider(base_url="https://["),
    },
    site=Site(
        attach=(
            Attached(url="http://gpu-7.internal:8000/v1/", allow_cleartext=True),
            Attached(url="http://gpu-8.internal:8000"),
            Attached(url="unix:/x", allow_cleartext=True),
            Attached(url="http://8.8.8.8:8000", allow_cleartext=True),
        )
    ),
    version="v",
)
GPU = {
    "uuid": "GPU-a", "name": "H200", "index": 0, "memory_total_gb": 141.0, "memory_free_gb": 20.5, "utilisation": 0.9,
    "power_w": 600, "temperature_c": 71, "throttle": ["hardware thermal"], "fault": "",
}  # fmt: skip


def document(*entries: Any, **changed: Any) -> dict[str, Any]:
    """What serving publishes, with these entries."""
    return {
        "version": 1, "host": "h", "boot": "b", "at": 0, "gpus": [], "gpus_age_s": 1.0, "gpu_note": "",
        "instances": list(entries), **changed,
    }  # fmt: skip
