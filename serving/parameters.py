"""Which body fields a request may carry: vLLM's own, OpenAI's, those that change nothing, and those no caller may set.

Data only, for vLLM 0.32 and OpenAI's chat completions; it knows neither requests nor models. A test marked `engine`
holds the sets against vLLM's request models, so that an upgrade shows what came and went.
"""

from __future__ import annotations

from typing import Literal

Route = Literal["chat/completions", "completions", "embeddings"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHARED_ENGINE = "it acts on the engine that all callers share; take it out of the request"
_OPERATOR = "where requests go and with which key is the operator's to say; take it out of the request"

REFUSED: dict[str, str] = {
    # What the engine would do for one caller at the cost, or with the data, of the others.
    "add_generation_prompt": "it changes how the model's own template closes the prompt; leave it out",
    "cache_salt": "it decides whose cached prompts are reused; Headgate alone sets it",
    "chat_template": "a template is a program run inside the engine; the model's own is used",
    "ec_transfer_params": _SHARED_ENGINE,
    "kv_transfer_params": _SHARED_ENGINE,
    "lora_request": "it would load weights into the shared engine; name a model instead",
    "media_io_kwargs": "it changes how the engine decodes media; leave it out",
    "mm_processor_kwargs": "it changes how much memory the engine takes for media; leave it out",
    "multi_modal_data": "media come as message parts; take it out of the request",
    "priority": "it would overtake other callers; leave it out",
    "prompt_embeds": "it hands tensors to the engine that cannot be checked; send text",
    "request_id": "ids are Headgate's to give, so that no caller can name another's request",
    "session_id": "it could join another caller's session; send the header x-headgate-session instead",
    "tokenizer": "the model's own tokenizer is used; take it out of the request",
    "use_beam_search": "it multiplies the work of one request unseen; use `n` instead",
    "vllm_xargs": "it passes unchecked settings to extensions of the engine; leave it out",
    # Fields of vLLM's render endpoints, which Headgate does not offer.
    "mm_payload": "it belongs to an endpoint Headgate does not offer; leave it out",
    "return_mm_kwargs": "it belongs to an endpoint Headgate does not offer; leave it out",
    "return_token_offsets": "it belongs to an endpoint Headgate does not offer; leave it out",
    # Fields by which other gateways let a caller choose the destination or its key.
    "api_base": _OPERATOR,
    "api_key": _OPERATOR,
    "api_version": _OPERATOR,
    "base_url": _OPERATOR,
    "custom_llm_provider": _OPERATOR,
    "extra_body": _OPERATOR,
    "extra_headers": _OPERATOR,
    "extra_query": _OPERATOR,
    "fallbacks": _OPERATOR,
    "litellm_params": _OPERATOR,
    "organization": _OPERATOR,
    "proxy": _OPERATOR,
}
"""Body fields that are an error whatever the model is, each with its reason and remedy for the caller."""

REFUSED_TEMPLATE_KEYS = _names(
    """
    add_generation_prompt chat_template continue_final_message conversation documents max_length messages
    padding return_assistant_tokens_mask return_dict return_tensors tokenize tokenizer tokenizer_kwargs tools
    truncation
    """
)
"""Keys inside `chat_template_kwargs` that name a template or arguments of the function that fills it.

Such a key would go round the field of the same name; variables of the template (`enable_thinking`) are free.
"""

BOOKKEEPING = _names(
    """
    metadata prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier service_tier store
    user
    """
)
"""OpenAI fields that do not change the answer, so they are left out where a model does not take them."""

_SAMPLING = _names(
    """
    add_special_tokens allowed_token_ids bad_words echo frequency_penalty ignore_eos include_stop_str_in_output
    length_penalty logit_bias logprob_token_ids logprobs max_tokens min_p min_tokens model n presence_penalty
    prompt_logprobs repetition_detection repetition_penalty response_format return_token_ids
    return_tokens_as_token_ids routed_experts_prompt_start seed skip_special_tokens
    spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options structured_outputs
    temperature thinking_token_budget top_k top_p truncate_prompt_tokens truncation_side user watermarking
    """
)

CHAT = _SAMPLING | _names(
    """
    chat_template_kwargs continue_final_message documents include_reasoning max_completion_tokens messages
    parallel_tool_calls reasoning_effort return_prompt_text tool_choice tools top_logprobs
    """
)
"""Body fields of vLLM's chat completions that callers may set."""

COMPLETIONS = _SAMPLING | frozenset({"prompt", "suffix"})
"""Body fields of vLLM's completions that callers may set."""

EMBEDDINGS = _names(
    """
    add_special_tokens chat_template_kwargs continue_final_message dimensions embed_dtype encoding_format
    endianness input messages model padding truncate_prompt_tokens truncation_side use_activation user
    """
)
"""Body fields of vLLM's embeddings that callers may set."""

OPENAI_CHAT = BOOKKEEPING | _names(
    """
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    messages modalities model moderation n parallel_tool_calls prediction presence_penalty reasoning_effort
    response_format seed stop stream stream_options temperature tool_choice tools top_logprobs top_p verbosity
    web_search_options
    """
)
"""Body fields of OpenAI's chat completions."""

OUTPUT_LIMITS = frozenset({"max_tokens", "max_completion_tokens"})
"""The two names of the output limit; the router writes the one a provider wants."""

_ENGINE: dict[str, frozenset[str]] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
}
_ALWAYS: dict[str, frozenset[str]] = {
    "chat/completions": frozenset({"model", "messages", "stream"}) | OUTPUT_LIMITS,
    "completions": frozenset({"model", "prompt", "stream", "max_tokens"}),
    "embeddings": frozenset({"model", "input"}),
}


def accepted(route: Route, model_parameters: Literal["vllm"] | frozenset[str]) -> frozenset[str]:
    """The body fields a model honours on `route`, given `parameters` of its catalogue entry.

    What every model of the route takes need not be listed there; what no caller may set is never in it.
    """
    if model_parameters == "vllm":
        return _ENGINE[route]
    return (_ALWAYS[route] | frozenset(model_parameters)) - REFUSED.keys()
