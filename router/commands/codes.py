"""What each error code means, in one sentence with what to do: the rows of the READMEs' tables, for `headgate explain`.

The ledger keeps an error's code alone, since its message can quote a request; here the code is put into words again.
`KEY` stands for the id of the key. A test holds these sentences equal to the tables, and the tables to the code.
"""

from __future__ import annotations

ERRORS: dict[str, str] = {
    "invalid_json": "the body is no JSON object, or holds a number beyond 64 bits",
    "duplicate_field": "a field stands twice in one object",
    "too_deep": "the body is nested deeper than 64 levels",
    "too_many_values": "the body holds more than 500,000 values, or more than 50,000 objects and lists",
    "missing_field": "`model` is not there; what else a model's server misses it says itself, with `invalid_request`",
    "invalid_request": "a field has a value that cannot be taken; `param` names it",
    "invalid_http": "the request is no HTTP/1.1, or could be read in two ways; the connection is closed",
    "invalid_host": "send exactly one Host header: a host, with or without a port",
    "unsupported_parameter": "no model that may answer takes this field; `param` names it",
    "schema_too_large": "a schema or grammar for the answer is over 64 KiB, or over 32 levels deep",
    "invalid_schema": "a schema names another document, a type there is not, or a pattern that is none or too much",
    "invalid_tool": "a tool's name has other signs than letters, digits, `_` and `-`, or too many",
    "tools_too_large": "more than 128 tools, or more than 256 KiB of them",
    "tool_not_offered": "a tool that the provider would run; none is run here",
    "not_stored": "a file or an earlier item is named; send what it holds",
    "ability_missing": "the model lacks an ability the request needs (tools, schema, vision, …)",
    "media_url_not_allowed": "pictures and other media come as `data:` URLs; nobody fetches an address",
    "invalid_media": (
        "a picture, recording or file is not base64 by the standard, of a type that is not taken, or not what it is "
        "said to be; the message says which"
    ),
    "media_too_large": (
        "a picture over 50 million pixels or 20,000 on a side, a recording over 8 MiB, or more than 20 of them"
    ),
    "context_length_exceeded": "prompt and answer do not fit the model's context",
    "model_required": "embeddings name one model, not a lane or `auto`",
    "invalid_api_key": "no key, several keys, or one that is unknown, revoked or expired",
    "data_class_not_cleared": (
        "the model may not receive data of this class; the message names the line that would change it"
    ),
    "escalation_not_allowed": "the key may not ask for a stronger model; `headgate keys set KEY --escalate`",
    "requirement_not_met": (
        "key, team or route require something that the hosted model is not known to promise; the message names the line"
    ),
    "not_scannable": (
        "not every byte could be searched, or a part cannot be read: it may be answered by a local model alone"
    ),
    "declassify_not_allowed": "the key may not lower the data class; `headgate keys set KEY --declassify`",
    "lane_not_allowed": "the key may not use this lane",
    "unpriced": "the key has a budget and the model no price",
    "door_refused": "the door refused it without a code of its own",
    "forbidden": "lasting, for another reason; see the message",
    "model_not_found": "no such model, or it is not served; the message names those there are",
    "route_not_offered": (
        "a hosted model was asked on `/v1/responses` or `/v1/messages`, where only local ones answer; or the model's "
        "server has no such route"
    ),
    "not_offered": "other servers have this path, Headgate has not; the message says what to do instead",
    "not_found": "no such path or request",
    "method_not_allowed": "use POST",
    "request_timeout": "the request did not come whole within `router.header_timeout_s` and `router.body_timeout_s`",
    "client_left": (
        "in the ledger alone: it ended before it was decided, since its caller left or the router was stopped"
    ),
    "idempotency_in_progress": "a request with this Idempotency-Key is being answered; Retry-After",
    "request_too_large": "over `router.max_body_mb`",
    "uri_too_long": "over 8 KiB",
    "unsupported_encoding": "send the body without content-encoding",
    "idempotency_mismatch": (
        "this Idempotency-Key was used for another request: another body, or other `x-headgate-data-class`, "
        "`x-headgate-reason` or `x-headgate-escalate`"
    ),
    "request_quarantined": (
        "two engines ended while they worked on this very request; it is given to no other for ten minutes; Retry-After"
    ),
    "answer_too_large": (
        "the whole answer is over 64 MiB: ask for fewer inputs or answers, no log probabilities, "
        '`encoding_format: "base64"`, or a stream'
    ),
    "headers_too_large": "more than 64 headers, or over 16 KiB of them",
    "budget_exceeded": "the key's budget for the month does not cover the worst cost",
    "rate_limit_exceeded": (
        "the key has used its minute or brought too many new schemas, or the upstream takes no more now; Retry-After"
    ),
    "internal_error": "a bug; the operator's log has the reason",
    "upstream_bad_response": "the upstream gave no usable answer",
    "overloaded": (
        "`router.max_requests`, `router.max_connections` or the limit of memory, or that of bodies, is reached, or "
        "the router is being stopped; Retry-After"
    ),
    "queue_full": (
        "local models are full and `router.queue_length` requests wait already, or this one made way in the queue for "
        "a team of which fewer wait; Retry-After"
    ),
    "queue_timeout": (
        "local models were full for `router.queue_wait_s` seconds (batch: `router.queue_wait_batch_s`), or will be, by "
        "how fast requests end; Retry-After"
    ),
    "no_local_capacity": "no local model is ready; Retry-After. Never answered by a hosted one instead",
    "gpu_trouble": "the model's GPU is lost or out of memory; Retry-After",
    "door_closed": (
        "the door does not run, cannot write its book, or was closed by the operator (`headgate door status`), or a "
        "scanner does not work (`headgate status`); Retry-After"
    ),
    "ledger_unavailable": "the ledger takes no records; Retry-After",
    "upstream_timeout": "the upstream did not answer in time",
    "upstream_overloaded": "a provider or an attached server takes no more now; `Retry-After` says when",
    "upstream_bad_event": "inside a stream that has begun with 200: an event of it could not be read",
    "http_version_not_supported": "use HTTP/1.1",
    "upstream_interrupted": "inside a stream that has begun with 200: it was cut, and is not the whole answer",
}
"""The codes of the top README."""
OF_THE_DOOR: dict[str, str] = {
    "permit_missing": "not exactly one permit came with it",
    "permit_invalid": (
        "seal, door, body, time or a field of the permit is wrong; the caller is told `door_closed`, since a fresh "
        "permit can help"
    ),
    "permit_used": "a permit is accepted once",
    "permits_exhausted": "too many permits are open at once; the caller is told `door_closed`",
    "policy_mismatch": "router and door hold different configurations; restart both",
    "model_unknown": "the door's catalogue has no such hosted model",
    "model_mismatch": "body and permit name different models",
    "provider_mismatch": "the model is another provider's",
    "provider_disabled": "the provider is not enabled",
    "path_not_allowed": "a path that is never called, or another one than the caller's route",
    "key_unknown": "no such key in the ledger",
    "key_revoked": "the key was revoked meanwhile",
    "key_expired": "the key has expired meanwhile",
    "team_mismatch": "the key belongs to another team than the permit says",
    "data_class_unknown": "a data class cannot be read",
    "data_class_lowered": "the permit claims less than key, team and route can have",
    "field_not_allowed": "the body has a field this model is not known to take, `base_url` for one",
    "tool_not_allowed": "a tool that the provider would run: by its type, or by a field that no function has",
    "destination_refused": "the provider's address is not one that may be called",
    "provider_key_missing": "the door finds no key for the provider",
    "ledger_lost": "the door cannot read the keys; the caller is told `door_closed`",
    "scanner_failed": "the door's scanner cannot be used or its self-test fails; the caller is told `door_closed`",
    "book_not_written": "the door cannot write its book; the caller is told `door_closed`",
    "provider_unreachable": "no connection; nothing was sent",
    "provider_tls": "the provider's certificate is not trusted; nothing was sent",
    "provider_proxy": "the proxy lets nothing through; nothing was sent",
    "provider_timeout": "the provider did not answer in time; the caller is told `upstream_timeout`",
    "provider_failed": "the connection broke off",
    "cut_by_operator": "the operator closed the door while the answer was awaited",
    "provider_refused_key": "the provider refused the door's key",
    "provider_redirected": "the provider redirects; that is never followed",
    "provider_encoding": "the answer is compressed, though that was not asked for",
    "provider_headers_too_large": "over 64 KiB of headers",
    "provider_answer_too_large": "over 64 MiB without being a stream; the caller is told `answer_too_large`",
    "provider_error": "the provider refused the request and named no code",
}
"""Those that only the door gives; router/README.md has their table."""


def sentence(code: str, key: str) -> str:
    """What a code means, for the key of that request; empty for one that an upstream made up."""
    said = ERRORS.get(code) or OF_THE_DOOR.get(code, "")
    return said.replace("`", "").replace(" KEY ", f" {key} ")
