"""What a start says of proxies in the environment."""

from __future__ import annotations

from router.proxies import ignored


def test_proxies_that_are_not_used_are_named_without_what_stands_in_them() -> None:
    environ = {"HTTPS_PROXY": "http://who:word@proxy.example", "all_proxy": "x", "http_proxy": "", "PATH": "/bin"}
    told = ignored(environ)
    assert told.startswith("HTTPS_PROXY, all_proxy: ") and "providers.NAME.proxy" in told
    assert "proxy.example" not in told and "word" not in told
    assert ignored({"PATH": "/bin", "NO_PROXY": "localhost", "HTTP_PROXY": ""}) == ""
