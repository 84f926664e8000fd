"""Pure: credentials without a form of their own: what chance made, given to something that is named after its vendor.

Their makers publish no form, or one that any hash has, so the vendor's word must stand before the value, as in
`DATADOG_API_KEY=…`. Words, forms and bounds are our own.
"""

from __future__ import annotations

import re
from itertools import pairwise

from router.scanner.secrets import entropy

WORDS = (
    "adafruit", "adobe", "adyen", "airtable", "algolia", "alibaba", "amplitude", "asana", "atlassian", "authress",
    "auth0", "beamer", "bitbucket", "bittrex", "bugsnag", "buildkite", "circleci", "clickhouse", "cloudflare",
    "codeclimate", "codecov", "cohere", "coinbase", "confluent", "contentful", "coveralls", "datadog",
    "digitalocean", "discord", "drone", "dropbox", "easypost", "etsy", "facebook", "fastly", "figma", "finicity",
    "finnhub", "flickr", "flutterwave", "freemius", "freshbooks", "freshdesk", "gitlab", "gitter", "gocardless",
    "heroku", "honeycomb", "hubspot", "instagram", "intercom", "jfrog", "jira", "klaviyo", "kraken", "kucoin",
    "launchdarkly", "linkedin", "logdna", "looker", "mailchimp", "mailgun", "mapbox", "mattermost", "meraki",
    "messagebird", "mixpanel", "netlify", "newrelic", "new-relic", "new_relic", "nytimes", "new-york-times",
    "newyorktimes", "okta", "onesignal", "opsgenie", "pagerduty", "paypal", "pivotaltracker", "plaid", "private-ai",
    "private_ai", "privateai", "pusher", "rapidapi", "rollbar", "sendbird", "sentry", "snyk", "sonar", "splunk",
    "squarespace", "statuspage", "sumo", "telegram", "travis", "trello", "twilio", "twitch", "twitter", "typeform",
    "vimeo", "yandex", "zendesk", "zoom",
)  # fmt: skip
"""As they are written in names of settings, in any case."""
UUIDS = ("codecov", "heroku", "kucoin", "launchdarkly", "messagebird", "sendbird", "snyk", "squarespace")
"""Those whose credentials are UUIDs; of any other a UUID names something and opens nothing."""
_TOGETHER = 16
"""Words in one pattern; Hyperscan takes no pattern with all of them."""
PATTERNS = tuple(
    rf"(?:{'|'.join(map(re.escape, some))})[\w .-]*[\"'\x60\])]*\s*(?:=>|:=|=|:)\s*[\"'\x60]?[\w+~.-][\w+=~.-]{{19,}}"
    r"(?:[\s\x00\"'\x60,;(){}\[\]<>]|\z)"
    for some in (WORDS[start : start + _TOGETHER] for start in range(0, len(WORDS), _TOGETHER))
)
"""A vendor's word, a few words more, a sign that assigns, and one value without gaps; `assigned` bounds all of it."""
_ANY = "|".join(map(re.escape, WORDS))
_FOUND = re.compile(
    rf"(?P<vendor>{_ANY})(?P<name>[\w .-]{{0,24}})[\"'`\])]{{0,3}}\s{{0,3}}(?P<sign>=>|:=|=|:)\s{{0,3}}[\"'`]?"
    r"(?P<value>[\w+~.-][\w+=~.-]{19,160})[\s\x00\"'`,;(){}\[\]<>]?\Z",
    re.IGNORECASE | re.ASCII,
)
WINDOW = 240
"""Characters before its end in which all of it stands."""
_UUID = re.compile(r"(?:[a-z]{2,6}-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_OPENS = re.compile(r"key|token|secret|auth|access|pass|cred|api|pat\b|sign", re.IGNORECASE)
_NAMES = re.compile(
    r"(?:^|[\W_])(?:id|ids|uuid|guid|sha\d*|h1|md5|hash|digest|checksum|integrity|commit|rev|revision|ref|version|tag|"
    r"trace|span|event|request|image|build|user|handle|channel)[\W_]*$",
    re.IGNORECASE,
)
"""What ends the name of something that is no credential."""
CHANGES = 3
"""How often letters and digits take turns in a value at least: names and versions do so less often."""


def assigned(text: str) -> bool:
    """Whether what a vendor's setting is given is a credential: made by chance, no id and no hash of something."""
    found = _FOUND.search(text[-WINDOW:])
    if found is None or _NAMES.search(found["name"]):
        return False
    value = found["value"]
    if _UUID.fullmatch(value):
        return found["vendor"].lower() in UUIDS
    if _SUM.fullmatch(value) and found["sign"] == ":" and not _OPENS.search(found["name"]):
        return False  # as lock files write what they have fetched
    turns = sum(a.isdigit() != b.isdigit() for a, b in pairwise(value) if a.isalnum() and b.isalnum())
    return turns >= CHANGES and entropy(value) >= 3.0
