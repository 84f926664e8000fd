"""vLLM's command line: it listens privately, knows nothing it need not, and the catalogue cannot change that."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import catalogue, command
from serving.catalogue import Model
from serving.demo_model import demo_model
from serving.gpus import Gpu, Readings
from serving.placement import Placed, place

CARDS = Readings(tuple(Gpu(f"GPU-{i}", "H100", i, 80, 80, compute=9.0) for i in range(8)))


def placed(readings: Readings = CARDS, variant: dict[str, Any] | None = None, **more: Any) -> Placed:
    base = {"name": "qwen", "place": "local", "lanes": ["cheap"], "context": 32768, "output": 512, "repo": "site/qwen"}
    first = {"name": "v", "memory_gb": 20, **(variant or {})}
    return place([Model.model_validate({**base, "variants": [first], **more})], readings, 64).placed[0]


def build(what: Placed, inherited: dict[str, str] | None = None, **more: Any) -> command.Command:
    given: dict[str, Any] = {
        "python": Path("/engine/bin/python"), "weights": "/hub/qwen", "revision": "", "socket": Path("/run/qwen.sock"),
        "port": None, "installation": "here", "instance": "qwen-1", "inherited": inherited or {}, **more,
    }  # fmt: skip
    return command.build(what, **given)


def pairs(args: tuple[str, ...]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(args))


def test_the_whole_command_of_a_small_model() -> None:
    made = build(placed())
    assert made.args[:3] == ("/engine/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert pairs(made.args) >= {
        ("--model", "/hub/qwen"), ("--uds", "/run/qwen.sock"), ("--served-model-name", "qwen"),
        ("--max-model-len", "32768"), ("--max-num-queued-reqs", "256"),
    }  # fmt: skip
    assert "--enable-prompt-tokens-details" in made.args and "--disable-uvicorn-access-log" in made.args
    assert ("--scheduling-policy", "priority") in pairs(made.args)
    for absent in ("--host", "--enforce-eager", "--tensor-parallel-size", "--trust-remote-code", "--revision"):
        assert absent not in made.args
    assert made.environment["CUDA_VISIBLE_DEVICES"] == "GPU-0"


def test_only_a_model_that_sleeps_has_the_pages_for_it() -> None:
    made, plain = build(replace(placed(), sleeps=True)), build(placed())
    assert "--enable-sleep-mode" in made.args and made.environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert "--enable-sleep-mode" not in plain.args and "VLLM_SERVER_DEV_MODE" not in plain.environment
    assert "--uds" in made.args and "--host" not in made.args, "its pages are on a socket of ours alone"


def test_an_engine_of_known_shape_keeps_no_places_for_more_than_are_let_in() -> None:
    shape = {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "intermediate_size": 14336,
    }  # fmt: skip
    found = placed(variant={"memory_gb": 20, "weights_gb": 16}, shape=shape)
    limit = str(found.limit)
    assert found.need is not None and 1 <= found.limit <= 256
    assert pairs(build(found).args) >= {("--max-num-queued-reqs", limit), ("--max-num-seqs", limit)}
    own = placed(variant={"memory_gb": 20, "weights_gb": 16, "args": {"max-num-seqs": 8}}, shape=shape)
    assert ("--max-num-seqs", "8") in pairs(build(own).args)


def test_a_port_is_bound_to_loopback_and_somewhere_it_must_listen() -> None:
    args = build(placed(), socket=None, port=8001).args
    assert {("--host", "127.0.0.1"), ("--port", "8001")} <= pairs(args) and "--uds" not in args
    with pytest.raises(ValueError, match="neither a socket nor a port"):
        build(placed(), socket=None)


def test_a_revision_counts_where_weights_come_by_name() -> None:
    assert ("--revision", "abc") in pairs(build(placed(), weights="site/qwen", revision="abc").args)
    assert "--revision" not in build(placed(), weights="/hub/qwen", revision="abc").args


def test_on_a_cpu() -> None:
    made = build(placed(Readings(note="none"), {"device": "cpu"}, environment={"VLLM_CPU_KVCACHE_SPACE": "8"}))
    assert "--enforce-eager" in made.args and "--gpu-memory-utilization" not in made.args
    assert made.environment["VLLM_CPU_KVCACHE_SPACE"] == "8" and made.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert build(placed(Readings(), {"device": "cpu"})).environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_every_local_engine_refuses_what_is_over_its_limit_and_says_what_it_had_cached() -> None:
    """Without the one a full engine lets requests wait without end; without the other nobody knows what was cached."""
    local = [model for model in catalogue.load().models.values() if model.place == "local"]
    shipped = [model.model_copy(update={"remote_code": False}) for model in local]
    cards = Readings(tuple(Gpu(f"GPU-{i}", "B300", i, 999, 999, compute=10.3) for i in range(16)))
    lines = [what for model in [*shipped, demo_model()] for what in place([model], cards, 64).placed]
    lines += place([demo_model()], Readings(), 4).placed
    assert len(lines) == len(shipped) + 2
    for what in lines:
        made = build(what)
        limit = int(made.args[made.args.index("--max-num-queued-reqs") + 1])
        assert limit == what.limit > 0, what.model.name
        assert "--enable-prompt-tokens-details" in made.args
    assert ("--max-num-queued-reqs", "7") in pairs(build(placed(limit=7)).args)


def test_flags_of_the_variant_over_those_of_the_model_over_ours() -> None:
    args = {
        "max-num-seqs": 8, "enable_expert_parallel": True, "enable-prompt-tokens-details": False, "seed": -1,
        "speculative-config": {"method": "mtp", "num_speculative_tokens": 3}, "cudagraph-capture-sizes": [1, 2],
    }  # fmt: skip
    made = build(placed(variant={"args": {"max-num-seqs": 4}}, args=args)).args
    assert {("--max-num-seqs", "4"), ("--cudagraph-capture-sizes", "1"), ("1", "2")} <= pairs(made)
    assert "--enable-expert-parallel" in made and "--enable-prompt-tokens-details" not in made and "--seed=-1" in made
    assert json.loads(made[made.index("--speculative-config") + 1]) == {"method": "mtp", "num_speculative_tokens": 3}
    assert "8" not in made


def test_parallel_sizes_make_up_the_gpus() -> None:
    four = {"memory_gb": 200, "gpus": 4}
    assert ("--tensor-parallel-size", "4") in pairs(build(placed(variant=four)).args)
    assert "--tensor-parallel-size" not in build(placed(variant={**four, "args": {"data-parallel-size": 4}})).args
    assert ("--tensor-parallel-size", "2") in pairs(
        build(placed(variant={**four, "args": {"data-parallel-size": 2}})).args
    )
    with pytest.raises(ValueError, match="ask for 8 GPUs, and its variant for 4"):
        build(placed(variant={**four, "args": {"tensor-parallel-size": 8}}))


def test_where_others_hold_memory_it_asks_for_less_than_is_free() -> None:
    held = Readings((Gpu("GPU-0", "H100", 0, 80, 40, compute=9.0),))
    for args in ({}, {"gpu-memory-utilization": 0.95}):
        made = build(placed(held, args=args)).args
        assert float(made[made.index("--gpu-memory-utilization") + 1]) < 0.5
    alone = build(placed(args={"gpu-memory-utilization": 0.95})).args
    assert ("--gpu-memory-utilization", "0.95") in pairs(alone)


@pytest.mark.parametrize(
    "key",
    ["host", "port", "uds", "api-key", "api_key", "served_model_name", "hos", "ssl-keyf", "config", "model", "revision",
     "grpc", "middleware", "allowed-media-domains", "allowed_local_media_path", "allowed-media",
     "host.x", "--host", "max-num-queued-reqs", "seed=1 --host", ""],
)  # fmt: skip
def test_the_catalogue_cannot_change_where_it_listens_or_what_it_is(key: str) -> None:
    for what in ({"args": {key: "0.0.0.0"}}, {"variant": {"args": {key: "0.0.0.0"}}}):
        with pytest.raises(ValueError, match=r"^qwen: "):
            build(placed(**what))


def test_a_value_cannot_bring_a_flag_of_its_own() -> None:
    assert "--seed=--host" in build(placed(args={"seed": "--host"})).args
    with pytest.raises(ValueError, match="begin with a dash"):
        build(placed(args={"chat-template-kwargs": ["--host=0.0.0.0"]}))


def test_nothing_of_our_environment_reaches_it_but_what_it_needs() -> None:
    made_up = os.urandom(8).hex()
    secret = {
        name: made_up
        for name in ("OPENAI_API_KEY", "HTTPS_PROXY", "https_proxy", "PYTHONPATH", "HEADGATE_HOME", "HF_TOKEN",
                     "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_ENDPOINT", "LD_PRELOAD", "PATH_SECRET")
    }  # fmt: skip
    kept = {"PATH": "/bin", "HOME": "/home/me", "LC_ALL": "C", "CUDA_HOME": "/cuda", "HF_HOME": "/hub"}
    environ = build(placed(), {**secret, **kept, "CUDA_VISIBLE_DEVICES": "3"}).environment
    assert made_up not in environ.values()
    assert kept.items() <= environ.items() and environ["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    assert {
        "HEADGATE_INSTALLATION": "here", "HEADGATE_INSTANCE": "qwen-1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "SPT_NOENV": "1", "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
        "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }.items() <= environ.items()  # fmt: skip


def test_the_catalogue_may_tune_the_environment_but_not_open_it() -> None:
    tuned = build(placed(environment={"VLLM_ENGINE_READY_TIMEOUT_S": "60", "HF_HUB_OFFLINE": "0"})).environment
    assert tuned["VLLM_ENGINE_READY_TIMEOUT_S"] == "60" and tuned["HF_HUB_OFFLINE"] == "1"
    for barred in ("VLLM_SERVER_DEV_MODE", "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "VLLM_MEDIA_CONNECTOR"):
        with pytest.raises(ValueError, match=f"cannot set {barred}"):
            build(placed(environment={barred: "1"}))


def test_no_engine_fetches_what_a_caller_names() -> None:
    for made in (
        build(placed()),
        build(placed(Readings(), {"device": "cpu"})),
        build(place([demo_model()], CARDS, 4).placed[0]),
    ):
        assert ("--allowed-media-domains", "none.invalid") in pairs(made.args)
        assert not any("local-media-path" in word for word in made.args)


def test_the_line_for_a_shell_pastes_and_marks_no_process_as_ours() -> None:
    made = build(placed(args={"speculative-config": {"method": "mtp it's"}}), {"HOME": "/home/me"})
    words = shlex.split(made.shell())
    assert tuple(words[-len(made.args) :]) == made.args
    assert "CUDA_VISIBLE_DEVICES=GPU-0" in words and "HEADGATE_" not in made.shell() and "/home/me" not in made.shell()


@pytest.mark.engine
def test_vllm_itself_accepts_the_line(engine_python: Path) -> None:
    lines = [build(place([demo_model()], readings, 4).placed[0]).args[3:] for readings in (CARDS, Readings())]
    lines.append(build(placed(variant={"memory_gb": 200, "gpus": 4}), weights="site/q", revision="abc").args[3:])
    parse = (
        "import json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
        "found = [parser.parse_args(line) for line in json.loads(sys.argv[1])]\n"
        "print([(f.uds, f.host, f.served_model_name, f.max_num_queued_reqs) for f in found])\n"
        "print([f.enable_prompt_tokens_details for f in found])\n"
        "print([f.allowed_media_domains for f in found], [f.allowed_local_media_path for f in found])\n"
        "from vllm.multimodal.media.connector import MediaConnector\n"
        "connector = MediaConnector(allowed_media_domains=found[0].allowed_media_domains)\n"
        "for url in ('http://127.0.0.1:9/x.png', 'https://www.example.com/x.png', 'file:///etc/hosts'):\n"
        "    try:\n"
        "        connector.fetch_image(url)\n"
        "        print('fetched', url)\n"
        "    except Exception as broken:\n"
        "        print('refused' if 'allowed' in str(broken) else 'tried', url, str(broken)[:80])\n"
    )
    done = subprocess.run(
        [engine_python, "-P", "-c", parse, json.dumps(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "('/run/qwen.sock', None, ['demo'], 16)" in done.stdout
    assert "[True, True, True]\n" in done.stdout
    assert "[['none.invalid'], ['none.invalid'], ['none.invalid']] ['', '', '']" in done.stdout
    assert done.stdout.count("refused ") == 3, done.stdout
