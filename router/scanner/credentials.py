"""Pure: what opens a door to whoever holds it: keys, tokens and passwords, by the forms their makers publish."""

from __future__ import annotations

from router.scanner import forms as public
from router.scanner import vendors
from router.scanner.forms import BASE32, BASE64, DIGIT, HEX, LOWER, UPPER, URL, WORD, Form, Run
from router.scanner.kinds import Kind
from router.scanner.secrets import assigned, assigned_in_words, jwt, password_in_address, password_in_pairs, varied
from serving.catalogue import DataClass

_FORMS: tuple[tuple[str, tuple[Form, ...]], ...] = (
    ("1password", (("ops_eyJ", Run(URL, 120)), ("A3-", Run(UPPER, 6), "-", Run(UPPER, 6), "-", Run(UPPER, 5)))),
    ("adafruit", (("aio_", Run(WORD, 28)),)),
    ("adobe", (("p8e-", Run(LOWER, 32)),)),
    ("adyen", (("AQE", Run(BASE64 + "=", 60, 140), "-", Run(BASE64 + "=", 40)),)),
    ("age", (("AGE-SECRET-KEY-1", Run(UPPER, 58)),)),
    ("airtable", (("pat", Run(WORD, 14), ".", Run(HEX, 64)),)),
    ("alibaba", (("LTAI", Run(WORD, 20)), ("LTAI", Run(WORD, 12)))),
    ("anthropic", ((("sk-ant-api03-", "sk-ant-admin01-", "sk-ant-oat01-"), Run(URL, 80)),)),
    ("atlassian", ((("ATATT3", "ATCTT3"), Run(URL, 60)), ("ATBB", Run(WORD, 32)))),
    ("authress", ((("sc_", "ext_", "scauth_", "authress_"), Run(LOWER, 5, 30), ".", Run(LOWER, 4, 6), ".acc",
                   ("_", "-"), Run(LOWER + "-", 10, 32), ".", Run(BASE64 + "_=-", 30)),)),
    ("aws", ((("AKIA", "ASIA", "ABIA", "ACCA"), Run(BASE32, 16)), ("ABSK", Run(BASE64, 100)))),
    ("azure", (("AccountKey=", Run(BASE64, 86), "=="), (Run(WORD, 3), Run(DIGIT, 1), "Q~", Run(URL + ".~", 31)))),
    ("clickhouse", (("4b1d", Run(WORD, 38)),)),
    ("clojars", (("CLOJARS_", Run(LOWER, 60)),)),
    ("cloudflare", (("v1.0-", Run(HEX, 24), "-", Run(HEX, 146)),)),
    ("contentful", (("CFPAT-", Run(URL, 43)),)),
    ("databricks", (("dapi", Run(HEX, 32)),)),
    ("definednetworking", (("dnkey-", Run(UPPER, 26), "-", Run(UPPER, 52)),)),
    ("digitalocean", ((("dop_v1_", "doo_v1_", "dor_v1_"), Run(HEX, 64)),)),
    ("discord", ((("M", "N", "O"), Run(URL, 23, 25), ".", Run(URL, 6), ".", Run(URL, 27)),
                 (("discord.com/api/webhooks/", "discordapp.com/api/webhooks/"), Run(DIGIT, 17)))),
    ("docker", ((("dckr_pat_", "dckr_oat_"), Run(URL, 27)),)),
    ("doppler", ((("dp.pt.", "dp.st.", "dp.sa."), Run(LOWER, 40)),)),
    ("dropbox", ((("sl.u.", "sl.B", "sl.A"), Run(URL, 120)),)),
    ("duffel", ((("duffel_live_", "duffel_test_"), Run(URL, 43)),)),
    ("dynatrace", (("dt0c01.", Run(UPPER, 24), ".", Run(UPPER, 64)),)),
    ("easypost", ((("EZAK", "EZTK"), Run(WORD, 54)),)),
    ("facebook", ((("EAAM", "EAAC", "EAAG"), Run(URL, 60)),)),
    ("figma", (("figd_", Run(URL, 40)),)),
    ("flutterwave", ((("FLWSECK-", "FLWSECK_TEST-"), Run(HEX, 12)),)),
    ("flyio", ((("fo1_", "fm1r_", "fm1a_", "fm2_"), Run(URL, 43)),)),
    ("frameio", (("fio-u-", Run(URL, 64)),)),
    ("github", ((("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), Run(WORD, 36)),
                ("github_pat_", Run(WORD, 22), "_", Run(WORD, 59)))),
    ("gitlab", ((("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "gloas-", "glsoat-"),
                 Run(URL, 20)), ("GR1348941", Run(URL, 20)), ("_gitlab_session=", Run(LOWER, 32)))),
    ("gocardless", (("live_", Run(URL + "=", 40)),)),
    ("google", (("AIza", Run(URL, 35)), ("ya29.", Run(URL, 50)), ("GOCSPX-", Run(URL, 28)))),
    ("grafana", (("glsa_", Run(WORD, 32), "_", Run(HEX, 8)), ("glc_eyJ", Run(BASE64, 32)))),
    ("groq", (("gsk_", Run(WORD, 52)),)),
    ("harness", ((("pat.", "sat."), Run(URL, 22), ".", Run(HEX, 24), ".", Run(WORD, 20)),)),
    ("headgate", (("hg_", Run(WORD, 8), "_", Run(WORD, 49)),)),
    ("heroku", (("HRKU-AA", Run(URL, 58)),)),
    ("hubspot", ((("pat-na1-", "pat-eu1-"), Run(HEX, 8), "-", Run(HEX, 4), "-", Run(HEX, 4), "-", Run(HEX, 4)),)),
    ("huggingface", ((("hf_", "api_org_"), Run(WORD, 34)),)),
    ("infracost", (("ico-", Run(WORD, 32)),)),
    ("intra42", ((("s-s4t2ud-", "s-s4t2af-"), Run(HEX, 64)),)),
    ("jfrog", (("AKCp", Run(WORD, 69)), ("cmVmd", Run(WORD, 59)))),
    ("langchain", ((("lsv2_pt_", "lsv2_sk_"), Run(HEX, 32), "_", Run(HEX, 10)),)),
    ("linear", ((("lin_api_", "lin_oauth_"), Run(WORD, 40)),)),
    ("lob", ((("live_", "test_", "live_pub_", "test_pub_"), Run(HEX, 31)),)),
    ("mailchimp", ((Run(HEX, 32), "-us", Run(DIGIT, 1)), (Run(HEX, 32), "-us", Run(DIGIT, 2)))),
    ("mailgun", ((("key-", "pubkey-"), Run(HEX, 32)),)),
    ("mapbox", ((("pk.eyJ", "sk.eyJ", "tk.eyJ"), Run(URL, 40, 140), ".", Run(URL, 20)),)),
    ("maxmind", ((Run(WORD, 6), "_", Run(WORD, 29), "_mmk"),)),
    ("microsoft_teams", (("webhook.office.com/webhookb2/", Run(HEX, 8), "-", Run(HEX, 4)),)),
    ("netlify", ((("nfp_", "nfc_"), Run(WORD, 36)),)),
    ("newrelic", (("NRAK-", Run(UPPER, 27)), ("NRII-", Run(URL, 32)), ("NRJS-", Run(HEX, 19)))),
    ("notion", (("ntn_", Run(DIGIT, 11), Run(WORD, 35)), ("secret_", Run(WORD, 43)))),
    ("npm", (("npm_", Run(WORD, 36)),)),
    ("nuget", (("oy2", Run(LOWER, 43)),)),
    ("nvidia", (("nvapi-", Run(URL, 60)),)),
    ("octopus", (("API-", Run(UPPER, 26)),)),
    ("openai", ((("sk-proj-", "sk-svcacct-", "sk-admin-"), Run(URL, 40)),
                ("sk-", Run(WORD, 20), "T3BlbkFJ", Run(WORD, 20)), ("sk-", Run(WORD, 48)), ("sk-", Run(HEX, 32)))),
    ("openrouter", (("sk-or-v1-", Run(HEX, 64)),)),
    ("openshift", (("sha256~", Run(URL, 43)),)),
    ("packagist", ((("packagist_ut_", "packagist_uut_", "packagist_ors_", "packagist_org_"), Run(HEX, 68)),)),
    ("perplexity", (("pplx-", Run(WORD, 48)),)),
    ("pinecone", (("pcsk_", Run(WORD + "_", 60)),)),
    ("plaid", ((("access-sandbox-", "access-development-", "access-production-"), Run(HEX, 8), "-", Run(HEX, 4)),)),
    ("planetscale", ((("pscale_tkn_", "pscale_pw_", "pscale_oauth_"), Run(URL, 32)),)),
    ("postman", (("PMAK-", Run(HEX, 24), "-", Run(HEX, 34)),)),
    ("prefect", (("pnu_", Run(LOWER, 36)),)),
    ("pulumi", (("pul-", Run(HEX, 40)),)),
    ("python_index", (("pypi-AgE", Run(URL, 60)),)),
    ("readme", (("rdme_", Run(LOWER, 70)),)),
    ("replicate", (("r8_", Run(WORD, 37)),)),
    ("rubygems", (("rubygems_", Run(HEX, 48)),)),
    ("scalingo", (("tk-us-", Run(URL, 48)),)),
    ("sendgrid", (("SG.", Run(URL, 22), ".", Run(URL, 43)),)),
    ("sendinblue", (("xkeysib-", Run(HEX, 64), "-", Run(WORD, 16)),)),
    ("sentry", (("sntrys_eyJ", Run(BASE64, 60)), ("sntryu_", Run(HEX, 64)))),
    ("settlemint", ((("sm_pat_", "sm_aat_", "sm_sat_"), Run(WORD, 16)),)),
    ("shippo", ((("shippo_live_", "shippo_test_"), Run(HEX, 40)),)),
    ("shopify", ((("shpat_", "shpca_", "shppa_", "shpss_"), Run(HEX + "ABCDEF", 32)),)),
    ("slack", ((("xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-"), Run(DIGIT, 9, 14), "-", Run(URL, 20)),
               ("xoxe.xoxp-1-", Run(WORD, 60)), ("xapp-1-", Run(UPPER, 10), "-", Run(DIGIT, 10), "-", Run(LOWER, 30)),
               ("hooks.slack.com/services/T", Run(UPPER, 8, 12), "/B", Run(UPPER, 8, 12), "/", Run(WORD, 20)))),
    ("sonarqube", ((("sqp_", "squ_", "sqa_"), Run(HEX, 40)),)),
    ("sourcegraph", (("sgp_", Run(HEX, 40)), ("sgp_", Run(HEX, 16), "_", Run(HEX, 40)))),
    ("square", (("sq0atp-", Run(URL, 22)), ("sq0csp-", Run(URL, 43)), ("EAAA", Run(URL, 60)))),
    ("stripe", ((("sk_live_", "sk_test_", "rk_live_", "rk_test_"), Run(WORD, 16)), ("whsec_", Run(WORD, 32)))),
    ("supabase", ((("sbp_", "sb_secret_"), Run(WORD + "_", 31)),)),
    ("tailscale", ((("tskey-auth-", "tskey-api-", "tskey-client-"), Run(WORD, 11), "-", Run(WORD, 20)),)),
    ("tavily", ((("tvly-", "tvly-dev-"), Run(WORD, 32)),)),
    ("telegram", ((Run(DIGIT, 8, 12), ":A", Run(URL, 34)),)),
    ("terraform", ((Run(WORD, 14), ".atlasv1.", Run(URL, 60)),)),
    ("together", (("tgp_v1_", Run(URL, 43)),)),
    ("twilio", (("SK", Run(HEX, 32)),)),
    ("twitter", (("AAAAAAAAAAAAAAAAAAAAA", Run(WORD + "%", 60)),)),
    ("typeform", (("tfp_", Run(URL + ".", 44)),)),
    ("vault", ((("hvs.", "hvb."), Run(URL, 80)),)),
    ("vercel", ((("vcp_", "vck_", "vci_", "vca_", "vcr_"), Run(WORD, 24)),)),
    ("xai", (("xai-", Run(WORD, 70)),)),
    ("yandex", (("AQVN", Run(URL, 35)), ("t1.9eu", Run(URL, 60)))),
)  # fmt: skip
"""By maker, in the order of the alphabet: the forms its credentials have."""


def forms() -> dict[str, tuple[Form, ...]]:
    """The forms by the name of their kind."""
    return {f"credential_{maker}": found for maker, found in _FORMS}


def _tokens(name: str, found: tuple[Form, ...]) -> Kind:
    planted = tuple(public.example(form, public.in_turn()) for form in found)
    patterns = tuple(map(public.pattern, found))
    return Kind(name, DataClass.secret, patterns, varied, caseless=False, planted=planted, reach=200, wrapped=True)


def _spread(*parts: str) -> str:
    return "".join(parts)


_KEY = public.example((Run(BASE64, 64),), public.in_turn())
_DASHES = "-" * 5
_SECRET = public.example((Run(WORD, 24),), public.in_turn())
_HEX = public.example((Run(HEX, 40),), public.in_turn())
_UUID = "-".join((_HEX[:8], _HEX[8:12], _HEX[12:16], _HEX[16:20], _HEX[20:32]))
_NAMES = (
    r"(?:password|passwd|passphrase|passcode|pwd|secret|token|credentials?|(?:api|access|auth|account|private|secret|"
    r"encryption|signing|master|shared|service|storage|license)[_. -]?key|passwort|kennwort|mot[_ -]de[_ -]passe|"
    r"contraseña|senha|wachtwoord|密码|密碼|パスワード|пароль)"
)
_VALUE = r"[^\s\x00\"'\x60,;(){}\[\]<>]{6,}"
_END = r"(?:[\s\x00\"'\x60,;(){}\[\]<>]|\z)"

CREDENTIALS: tuple[Kind, ...] = (
    *(_tokens(name, found) for name, found in forms().items()),
    Kind(
        "credential_private_key", DataClass.secret,
        (r"(?s)-----BEGIN [A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?-----.{0,160}?[A-Za-z0-9+/=]{32}",
         r"PuTTY-User-Key-File-[23]:", r"\bopenssh-key-v1\b"),
        caseless=False, reach=400, wrapped=True,
        planted=(_spread(_DASHES, "BEGIN RSA PRIV", "ATE KEY", _DASHES, "\n", _KEY, "\n"),),
    ),
    Kind(
        "credential_jwt", DataClass.secret, (r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16}",), jwt, caseless=False,
        reach=4096, wrapped=True,
        planted=(_spread("eyJ", "hbGciOiJIUzI1NiJ9", ".", "eyJ", "zdWIiOiIxMjM0In0", ".", _SECRET),),
    ),
    Kind(
        "credential_connection_string", DataClass.secret, (r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:@/\"'<>]{0,64}:[^\s@/\"'<>]{1,128}@[\w\[]",),
        password_in_address, planted=(_spread("postgres", "://app:", _SECRET, "@db.internal:5432/x"),),
    ),
    Kind(
        "credential_connection_string", DataClass.secret,
        (r"(?:server|data source|host|accountname|endpoint|uid|user id|username)\s?=[^\n]*;\s?"
         r"(?:password|pwd|accountkey|sharedaccesskey)\s?=[^;\s\x00\"']{4,}(?:[;\s\x00\"']|\z)",),
        password_in_pairs, planted=(_spread("Server=db;Database=x;User Id=sa;Pass", "word=", _SECRET, ";"),), reach=800,
        wrapped=True,
    ),
    Kind(
        "credential_assignment", DataClass.secret,
        (rf"{_NAMES}[\w.-]*[\"'\x60\])]*\s*(?:=>|:=|=|:)\s*[\"'\x60]?{_VALUE}{_END}",),
        assigned, planted=(_spread("pass", "word = '", _SECRET, "'"), _spread("API_", "KEY=", _SECRET)),
    ),
    Kind(
        "credential_assignment", DataClass.secret,
        (rf"{_NAMES}\s+(?:is|was|are|to|ist|lautet|est|es|é)\s*:?\s*[\"'\x60]?{_VALUE}{_END}",),
        assigned_in_words, planted=(_spread("the pass", "word is ", _SECRET),),
    ),
    Kind(
        "credential_assignment", DataClass.secret,
        (r"\bcurl\b[^\n]*\s(?:-u|--user)\s?[\"']?[^\s:\"']+:[^\s\x00\"']{4,}(?:[\s\x00\"']|\z)",),
        assigned_in_words, planted=(_spread("curl -u app:", _SECRET, " https://api.internal/"),),
    ),
    Kind(
        "credential_assignment", DataClass.secret,
        (r"cleartextpassword[\"']\s{1,8}value\s{0,3}=\s{0,3}[\"'][^\"'\s\x00]{6,128}[\"']",),
        assigned_in_words, planted=(_spread("<add key=\"ClearText", "Password\" value=\"", _SECRET, "\" />"),),
    ),
    Kind(
        "credential_vendor", DataClass.secret, vendors.PATTERNS, vendors.assigned,
        planted=(_spread("DATA", "DOG_API_KEY=", _HEX), _spread("her", "oku_api_key: '", _UUID, "'")),
    ),
    Kind(
        "credential_vendor", DataClass.secret,
        (r"contribsys__com[\"']?\s{0,3}[:=]\s{0,3}[\"']?[0-9a-f]{8}:[0-9a-f]{8}\b",), varied,
        planted=(_spread("BUNDLE_ENTERPRISE__CONTRIB", "SYS__COM=", _HEX[:8], ":", _HEX[8:16]),),
    ),
    Kind(
        "credential_authorization", DataClass.secret,
        (r"\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:bearer|basic|token|bot|apikey)\s{1,3}[\w+/=.~-]{12,}(?:[\s\x00\"',;]|\z)",),
        varied, planted=(_spread("Author", "ization: Bearer ", _SECRET),), reach=560, wrapped=True,
    ),
    Kind(
        "credential_aws", DataClass.secret,
        (r"\b(?:aws)?_?secret_?(?:access)?_?key[\"']?\s{0,3}[:=]\s{0,3}[\"']?[A-Za-z0-9+/]{40}(?:[^A-Za-z0-9+/=]|\z)",),
        varied, planted=(_spread("aws_secret_", "access_key = ", _KEY[:40]),),
    ),
)  # fmt: skip
