"""Which body fields a request may carry: vLLM's own, OpenAI's, those that change nothing, and those no caller may set.

Data only, for vLLM 0.32, OpenAI's chat completions and responses, and Anthropic's messages; it knows neither requests
nor models. A test marked `engine` holds the sets against vLLM's request models, so that an upgrade shows what came and
went.
"""

from __future__ import annotations

from typing import Literal

from serving.terms import Route as Route


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHARED_ENGINE = "it acts on the engine that all callers share; take it out of the request"
_OPERATOR = "where requests go and with which key is the operator's to say; take it out of the request"
_NOT_KEPT = "answers and conversations are not kept here; send the earlier turns inside the request"

REFUSED: dict[str, str] = {
    # What the engine would do for one caller at the cost, or with the data, of the others.
    "add_generation_prompt": "it changes how the model's own template closes the prompt; leave it out",
    "best_of": "it multiplies the work of one request unseen; use `n` instead",
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
    # What would have to be kept for a caller between two requests, or comes from where nobody here looked at it.
    "conversation": _NOT_KEPT,
    "enable_response_messages": "it returns the engine's own form of the prompt; leave it out",
    "mcp_servers": "no tool is run for a caller here; run it yourself and send what it gave",
    "previous_input_messages": "earlier turns are sent in `input`, where they are read",
    "previous_response_id": _NOT_KEPT,
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

_FOR_ANTHROPIC = _names(
    """
    anthropic_beta anthropic_version betas cache_control context_management diagnostics inference_geo service_tier
    speed user_profile_id
    """
)
HARMLESS: dict[Route, frozenset[str]] = {
    "responses": _names("client_metadata context_management moderation stream_options"),
    "messages": _FOR_ANTHROPIC,
    "messages/count_tokens": _FOR_ANTHROPIC | _names("max_tokens stop_sequences temperature top_k top_p watermarking"),
}
"""Fields that Codex and Claude Code send for their own provider's books and caches; an engine has no use for them.

Nor has it for how an answer is made where only a prompt is counted.
"""

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

RESPONSES = _names(
    """
    background chat_template_kwargs frequency_penalty ignore_eos include include_reasoning
    include_stop_str_in_output input instructions logit_bias max_output_tokens max_tool_calls metadata min_p model
    parallel_tool_calls presence_penalty prompt_cache_key reasoning repetition_penalty seed service_tier
    skip_special_tokens stop stop_token_ids store stream structured_outputs temperature text tool_choice tools
    top_k top_logprobs top_p truncation user watermarking
    """
)
"""Body fields of vLLM's responses that callers may set; `background` only as no, and `store` is always sent as no."""

MESSAGES = _names(
    """
    chat_template_kwargs max_tokens messages metadata model output_config stop_sequences stream system temperature
    thinking tool_choice tools top_k top_p watermarking
    """
)
"""Body fields of vLLM's messages that callers may set."""

COUNT_TOKENS = _names("chat_template_kwargs messages model output_config system thinking tool_choice tools")
"""Body fields of vLLM's count of a prompt's tokens, in the form of messages."""

RESPONSES_ALONE_REFUSED = {"prompt": "stored prompts are not kept here; send the text as `input` and `instructions`"}
"""A field of completions that means something else on responses."""

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
"""OpenAI's two names of the output limit; the router writes the one a provider wants."""

LIMITS_OF_ROUTE: dict[Route, frozenset[str]] = {
    "chat/completions": OUTPUT_LIMITS,
    "completions": OUTPUT_LIMITS,
    "embeddings": frozenset(),
    "responses": frozenset({"max_output_tokens"}),
    "messages": frozenset({"max_tokens"}),
    "messages/count_tokens": frozenset(),
}
"""The names of the output limit; the one that is written where the caller gave none is the last by the alphabet."""

_ENGINE: dict[Route, frozenset[str]] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "responses": RESPONSES,
    "messages": MESSAGES,
    "messages/count_tokens": COUNT_TOKENS,
}
_ALWAYS: dict[Route, frozenset[str]] = {
    "chat/completions": frozenset({"model", "messages", "stream"}) | OUTPUT_LIMITS,
    "completions": frozenset({"model", "prompt", "stream", "max_tokens"}),
    "embeddings": frozenset({"model", "input"}),
    "responses": frozenset({"model", "input", "instructions", "stream", "store", "max_output_tokens"}),
    "messages": frozenset({"model", "messages", "system", "stream", "max_tokens"}),
    "messages/count_tokens": frozenset({"model", "messages", "system"}),
}


def accepted(route: Route, model_parameters: Literal["vllm"] | frozenset[str]) -> frozenset[str]:
    """The body fields a model honours on `route`, given `parameters` of its catalogue entry.

    What every model of the route takes need not be listed there; what no caller may set is never in it.
    """
    if model_parameters == "vllm":
        return _ENGINE[route]
    return (_ALWAYS[route] | frozenset(model_parameters)) - REFUSED.keys()
