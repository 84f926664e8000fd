"""The demo model: a tiny Qwen3 whose words are noise, built here where no real weights are at hand.

Imported, it gives the model's catalogue record. Run by the engine's Python with a folder as its argument, it builds the
model there; torch, tokenizers and transformers come from that environment and are imported only then.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.catalogue import Model

CONTEXT = 4096
VOCABULARY = 1024
REPO = "demo"
"""Written as a model's `repo`, it means the weights that are built here. On the hub a name has an owner and a slash."""
ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

CORPUS = """
The river comes down from the hills and the headgate decides how much of it goes into the canal.
When the water is high the gate is lowered, and when the fields are dry it is raised again by hand.
Nobody here remembers who built the first wall, but everyone knows the sound it makes in the spring.
A keeper writes each change into a book: the hour, the height of the water, the reason and a name.
What belongs to the valley stays in the valley; what may travel goes through the gate and is counted.
Some mornings there is fog over the meadow and the mill stands still until the sun has warmed the stones.
Small boats carry apples, wool, timber, glass and letters to the town behind the second bridge.
Yes, no, perhaps, and thank you are words that the children learn before they can read the signs.
How long does it take? Two hours on foot, one by boat, and half of that if the wind is with you.
I am only a small model, made of random numbers, so please do not look for any meaning in this answer.
{"name": "value", "type": "object", "arguments": {"city": "River", "count": 12, "open": true, "items": [1, 2, 3]}}
def main(args): return [item for item in args if item is not None]  # 0123456789
"""

# ChatML with tools as the Qwen family writes them, so that the hermes tool parser reads the answers.
TEMPLATE = """
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}{%- for part in content -%}{{ part.text if part.text is defined else '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set first_is_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if first_is_system -%}{{- text(messages[0].content) + '\\n\\n' -}}{%- endif -%}
{{- '# Tools\\n\\nThese functions can be called:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nTo call one, answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' -}}
{%- elif first_is_system -%}
{{- '<|im_start|>system\\n' + text(messages[0].content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + text(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function is defined else call -%}
{{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif not (loop.first and first_is_system) -%}
{{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def demo_model() -> Model:
    """The catalogue record of the demo model; its weights are the folder `build` fills."""
    from serving.catalogue import Model

    return Model.model_validate({
        "name": "demo",
        "place": "local",
        "title": "Demo model: random weights, its words are noise",
        "family": "qwen",
        "licence": "made on this machine",
        "lanes": ("private", "cheap"),
        "abilities": {"chat", "completions", "tools", "schema", "logprobs"},
        "context": CONTEXT,
        "output": 256,
        "repo": REPO,
        "args": {
            "enable-auto-tool-choice": True,
            "tool-call-parser": "hermes",
            # A real model keeps to a tool's schema of itself; noise must be held to it.
            "tool-strict-level": "parameter",
            # Noise would fill every place where JSON allows white space until its output limit is reached.
            "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
        "variants": (
            # A small fixed cache: vLLM would else take nine tenths of the whole GPU for a toy.
            {"name": "gpu", "device": "gpu", "memory_gb": 3, "args": {"kv-cache-memory-bytes": 512 * 1024**2}},
            {"name": "cpu", "device": "cpu", "memory_gb": 3},
        ),
    })  # fmt: skip


def build(out: Path) -> None:
    """Build the model into the folder `out`, which appears whole or not at all; left alone where it is there."""
    if (out / "config.json").is_file():
        return
    out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(draft)
        _weights(tokenizer, draft)
        try:
            draft.rename(out)
        except OSError:
            # Another start was faster; its model is the same one.
            if not (out / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _tokenizer() -> Any:
    """A byte-level BPE over all 256 bytes, trained on the corpus above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=list(ENDS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS.strip().splitlines(), trainer)
    bpe.add_tokens(list(MARKS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",  # noqa: S106 a token of the vocabulary, no secret
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _weights(tokenizer: Any, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(20)
    torch.set_num_threads(1)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=ends[0],
        pad_token_id=ends[1],
        dtype="bfloat16",
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        _lean(model, tokenizer, torch)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=ends, pad_token_id=ends[1], bos_token_id=None
    )
    model.save_pretrained(folder)


def _lean(model: Any, tokenizer: Any, torch: Any) -> None:
    """Lean the noise towards whole words, quotes and ends, so that answers stop and JSON strings close.

    Channel 0 is the same for every token and so becomes a bias on the logits; channel 1 says "the last token was a
    quote or began the answer", so that quotes do not follow each other and no answer is empty. No layer writes into
    these two.
    """
    size = len(tokenizer)
    pieces = [tokenizer.decode([token]) for token in range(size)]
    quotes = torch.tensor([piece.endswith('"') for piece in pieces])
    opening = torch.tensor([piece.endswith(('"', "\n")) for piece in pieces])
    whole = {" " + word for word in CORPUS.split() if word.isalpha()}
    logit = torch.tensor([0.0 if piece in whole else -4.0 for piece in pieces])
    for token, piece in enumerate(pieces):
        if not (piece.isascii() and piece.isprintable() and piece.strip()) or token >= size - len(MARKS):
            logit[token] = -12.0
        elif any(letter.isdigit() for letter in piece):
            logit[token] = -5.0
    logit[: len(ENDS)] = -12.0
    for piece, lean in (("<|im_end|>", 2.0), ('"', 4.0), ("}", 1.0), ("]", 1.0), (",", 2.0), (".", 1.0)):
        logit[tokenizer.convert_tokens_to_ids(piece)] = lean
    words, head = model.model.embed_tokens.weight, model.lm_head.weight
    words.normal_(0, 1)
    words[:, 0], words[:, 1] = 3.0, 3.0 * opening
    head.normal_(0, 0.08)
    head[:, 0], head[:, 1] = logit / 3.0, -1.5 * quotes
    head[tokenizer.convert_tokens_to_ids("<|im_end|>"), 1] = -3.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:2] = 0
        layer.mlp.down_proj.weight[:2] = 0


if __name__ == "__main__":
    # Started as a script, this folder heads the module path, and its files would stand in for others' modules.
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    build(Path(sys.argv[1]).absolute())
