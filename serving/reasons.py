"""Why an engine died, read from its log: one sentence with the remedy. Pure.

Knows vLLM's and its libraries' words for the common causes; for all others it shows the last line that looks like one.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Death:
    """Why it died. `lasting`: starting again without a change would only die again."""

    reason: str
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    pattern: str
    sentence: str
    lasting: bool = True


# The first that matches anywhere in the log wins, so causes stand before their consequences.
_KNOWN = (
    _Known(
        r"Bus error|No space left on device[^\n]*/dev/shm|shared memory[^\n]*(?:exhausted|insufficient)",
        "shared memory is too small; give its mount (shm) more room",
    ),
    _Known(
        r"No space left on device|Errno 28\b",
        "no disk space is left; free some where the engine's cache and log lie",
    ),
    _Known(
        r"InvalidCxxCompiler|No working C\+\+ compiler|Failed to find C compiler|"
        r"(?:No such file or directory|not found)[^\n]{0,40}\b(?:gcc|g\+\+|cc|clang\+\+)\b|"
        r"\b(?:gcc|g\+\+|cc|clang\+\+)'?: (?:command )?not found|"
        r"Python\.h: No such file",
        "no working C++ compiler was found; install gcc and g++ (and the headers of Python), "
        "or set the flag enforce-eager for this model",
    ),
    _Known(
        r"max seq len[^\n]*KV cache is needed|larger than the maximum number of tokens that can be stored in KV cache",
        "its context does not fit the memory left for the KV cache; lower the model's `context`",
    ),
    _Known(
        r"out of memory|OutOfMemoryError|No available memory for the cache blocks|"
        r"Free memory on device [^\n]*is less than|can't allocate memory|std::bad_alloc|\bMemoryError\b|"
        r"Available memory [^\n]*is less than|Not enough (?:available )?memory",
        "it ran out of memory; free memory, lower the model's `context`, or choose a smaller model or variant",
        lasting=False,
    ),
    _Known(
        r"Address already in use|Errno 98\b|EADDRINUSE",
        "its address is taken by another process; stop that one, or start again",
        lasting=False,
    ),
    _Known(r"AF_UNIX path too long", "its socket's path is too long; set HEADGATE_HOME to a shorter folder"),
    _Known(
        r"Found no NVIDIA driver|driver version is insufficient|libcuda\.so\.1: cannot open|libcudart[^\n]*cannot open|"
        r"No CUDA GPUs are available|no kernel image is available|Failed to infer device type|"
        r"Torch not compiled with CUDA",
        "CUDA is missing or does not match this engine; check the NVIDIA driver with nvidia-smi, "
        "or choose another `engine` in headgate.yaml",
    ),
    _Known(
        r"(?:argument|option|set) `?trust_remote_code=True|requires you to execute the config|contains custom code",
        "its weights bring code of their own; read it, then set `remote_code` and `vetted` for this model",
    ),
    _Known(
        r"is greater than the derived max_model_len",
        "its `context` is longer than the model allows; lower it in headgate.yaml",
    ),
    _Known(
        r"does not recognize this architecture|[Mm]odel architectures? [^\n]*not supported|has no vLLM implementation",
        "this vLLM does not know the model's architecture; choose a newer `engine` version",
    ),
    _Known(
        r"not a valid model identifier|Can't load the configuration|no file named config\.json|Invalid repository ID|"
        r"LocalEntryNotFound|OfflineModeIsEnabled|Cannot find any model weights|Repo id must|not a valid JSON file",
        "its weights or their configuration cannot be read; check the model's `repo` and `revision`",
    ),
    _Known(
        r"gated repo|401 Client Error|403 Client Error",
        "the hub refuses the weights; accept the model's licence there and set HF_TOKEN",
    ),
    _Known(
        r"error: unrecognized arguments|error: argument [^\n]*|error: ambiguous option",
        "this vLLM does not take one of its flags; correct the model's `args`",
    ),
    _Known(
        r"^(?:ModuleNotFoundError|ImportError): |: No module named |undefined symbol",
        "the engine's environment is broken; remove its folder, and the next start makes it anew",
    ),
    _Known(
        r"validation errors? for \w*Config|[Cc]onfig\w* (?:is )?invalid|ValidationError",
        "vLLM refuses the model's configuration; check its `args` and `context`",
    ),
    _Known(
        r"Fatal Python error: (?:Illegal instruction|Segmentation fault)|Worker proc \S+ died unexpectedly",
        "one of its worker processes crashed; if it does so again, choose another `engine` version or variant",
        lasting=False,
    ),
)

# What vLLM writes in front of a line: the process, the level, the time, the place in its source.
_DECORATION = re.compile(
    r"^(?:\([^)]*pid=\d+\)\s*)?(?:(?:INFO|WARNING|ERROR|DEBUG)\s+\d\d-\d\d \d\d:\d\d:\d\d\s+(?:\[[^\]]*\]\s*)?)?"
)
# vLLM's own level; a warning may name an error that did no harm.
_HARMLESS = re.compile(r"^(?:\([^)]*pid=\d+\)\s*)?(?:INFO|WARNING|DEBUG)\s+\d\d-\d\d ")
_ERROR_LINE = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|error|fatal)\b[^:]{0,40}:\s*\S|\berror:\s")
_CONSEQUENCE = re.compile(
    r"RuntimeError: cancelled|Engine core initialization failed|See (?:the )?(?:root cause|stack trace)|EngineDeadError"
)
_LONGEST = 300


def death(code: int | None, log: str) -> Death:
    """Why a process that ended with exit status `code` (negative: by that signal) did so, by what it logged."""
    lines = [_DECORATION.sub("", line).strip() for line in log.splitlines() if not _HARMLESS.match(line)]
    for known in _KNOWN:
        for line in lines:
            if re.search(known.pattern, line):
                return Death(f"{known.sentence} (it said: {_short(line)})", known.lasting)
    told = [line for line in lines if _ERROR_LINE.search(line) and not _CONSEQUENCE.search(line)]
    if code is not None and code < 0 and not told:
        return Death(_by_signal(-code))
    last = told[-1] if told else next((line for line in reversed(lines) if line), "")
    ended = f"it ended by itself with exit status {code}"
    return Death(f"{ended}; it said: {_short(last)}" if last else f"{ended} and said nothing; see its log")


def _by_signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return "it was killed (SIGKILL); if nobody did so, the machine ran out of memory: choose a smaller model"
    return f"it was ended by {name}"


def _short(line: str) -> str:
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
