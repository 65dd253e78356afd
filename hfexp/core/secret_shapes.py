"""Mask secrets that can be told by their form: tokens, private keys, user and password of an address."""

import base64
import re
from collections.abc import Callable, Iterator

MASK = "***"
TOKEN_LENGTH = 16
"""Characters from which on a lone user part before the `@` of an address is a token; user names are shorter."""

_BLOCK = re.compile(r"(-----BEGIN [A-Z0-9 ]+-----)(.*?)(-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_TOKENS = {
    **dict.fromkeys(("hf_", "api_org_", "npm_"), r"[A-Za-z0-9]{8,}"),
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), r"\w{16,}"),
    **dict.fromkeys(("glpat-", "glrt-", "gldt-", "glptt-", "glft-", "glsoat-", "glcbt-", "glagent-"), r"[\w-]{16,}"),
    **dict.fromkeys(("sk-", "xai-"), r"(?<!-sk-)(?<!-xai-)(?=[\w-]{0,200}\d)[\w-]{16,}"),  # not sk-learn-...
    **dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_"), r"\w{8,}"),
    **dict.fromkeys(("AKIA", "ASIA"), r"[A-Z0-9]{12,}"),
    **dict.fromkeys(("AIza", "nvapi-", "pplx-", "pypi-", "hvs.", "AGE-SECRET-KEY-"), r"[\w-]{16,}"),
    **dict.fromkeys(("r8_", "gsk_", "dckr_pat_", "dop_v1_", "shpat_", "KGAT_", "ntn_"), r"[\w-]{16,}"),
    **dict.fromkeys(
        ("glsa_", "glc_", "lin_api_", "ATATT3", "sq0atp-", "figd_", "sbp_", "NRAK-", "PMAK-"), r"[\w-]{16,}"
    ),
    **dict.fromkeys(("ya29.", "GOCSPX-", "xapp-"), r"[\w-]{8,}"),
    "dapi": r"[A-Za-z0-9]{16,}(?:-\d+)?",
    "xox": r"[a-z]-[\w-]{6,}",
    "SG.": r"[\w-]{8,}\.[\w-]{8,}",
    "eyJ": r"[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?",
}
"""Prefixes of tokens and the pattern after each: Hugging Face, npm, GitHub, GitLab, OpenAI, xAI, Stripe, AWS, Google,
NVIDIA, Perplexity, PyPI, Vault, age, Replicate, Groq, Docker, DigitalOcean, Shopify, Kaggle, Notion, Grafana, Linear,
Atlassian, Square, Figma, Supabase, New Relic, Postman, Slack, Databricks, SendGrid; JSON web tokens."""
_TOKEN = re.compile("(?<![A-Za-z0-9])(?:" + "|".join(re.escape(begin) + rest for begin, rest in _TOKENS.items()) + ")")
_HOOK = re.compile(
    r"(https?\\*://(?:hooks\.[\w.:-]+|[\w-]+\.webhook\.[\w.:-]+|[\w.:-]+(?:/[\w.-]+){0,5}/webhooks?))/[^\s'\"<>,)\]}]*"
)
_AZURE = re.compile(r"(?<![\w~.-])[\w~.-]{3}[78]Q~[\w~.-]{31,34}(?![\w~-])")
_TELEGRAM = re.compile(r"(?<!\w)\d{8,10}:AA[\w-]{30,}")
_BASIC = re.compile(r"(\bBasic[ ]+)([A-Za-z0-9+/_-]{6,}={0,2})(?![A-Za-z0-9+/_=-])", re.IGNORECASE)
_USER_OF_CURL = re.compile(r"((?<![\w-])(?:-u|--user|--proxy-user)[ =]+)[^\s:'\"]+:[^\s'\"]+")
_QUERY = re.compile(
    r"((?<=[?&;])(?:key|code|session|session_?id|jsessionid|sid|ticket)=)[^&;\s'\"<>#,)\]}]{8,}", re.IGNORECASE
)
"""Query parameters that hold a secret in an address; elsewhere, their names can mean anything."""
_BEARER = re.compile(r"(\bBearer\s+)[\w.~+/-]{6,}=*", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/\s?#'\"<>]+@")
# A password may contain slashes; `(?!\d+[/?#])` keeps the port of an address without a password from matching.
_PASSWORD_WITH_SLASH = re.compile(r"(?<=://)[^/\s:@\[]*:(?!\d+[/?#])[^\s'\"]{1,200}@")
_QUOTED_USERINFO = re.compile(r"(%3A%2F%2F)(?:(?!%2F|%40)[^\s&'\"]){1,200}%40", re.IGNORECASE)


def _mask_basic(match: re.Match[str]) -> str:
    """Mask the user and password of HTTP basic authentication; `Basic training` decodes to no such pair."""
    word = match[2].rstrip("=")
    try:
        decoded = base64.urlsafe_b64decode(word.replace("+", "-").replace("/", "_") + "=" * (-len(word) % 4))
    except ValueError:
        return match[0]
    return f"{match[1]}{MASK}" if b":" in decoded and decoded.isascii() else match[0]


def _mask_block(match: re.Match[str]) -> str:
    """Mask a key block but keep its number of lines and its first column, because the text may be a diff."""
    first, *others = match[2].split("\n")
    shown = [f"{line[:1] if line[:1] in '+- ' else ''}{MASK}" if line.strip("+- \r") else line for line in others]
    return "\n".join([f"{match[1]}{MASK if first.strip() else ''}", *shown]) + match[3]


_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (("-----BEGIN",), _BLOCK, _mask_block),
    (tuple(_TOKENS), _TOKEN, MASK),
    (("Q~",), _AZURE, MASK),
    ((":AA",), _TELEGRAM, MASK),
    (("curl ",), _USER_OF_CURL, rf"\1{MASK}"),
    (("asic ", "ASIC "), _BASIC, _mask_basic),
    (("://",), _HOOK, rf"\1/{MASK}"),
    (("://",), _PASSWORD_WITH_SLASH, f"{MASK}@"),
    (("://",), _USERINFO, f"{MASK}@"),
    (("://",), _QUERY, rf"\1{MASK}"),
    (("%40",), _QUOTED_USERINFO, rf"\1{MASK}%40"),
    (("earer", "EARER"), _BEARER, rf"\1{MASK}"),
)
"""Per rule: strings of which a text with such a secret has one, the pattern, and the replacement; applied in order."""


def mask_shapes(text: str) -> str:
    """Replace secrets by `***`.

    The time is proportional to the length of the text. Most texts contain none of the hints, which is checked in a
    microsecond.
    """
    for hints, pattern, replacement in _RULES:
        if any(hint in text for hint in hints):
            text = pattern.sub(replacement, text)
    return text


def passwords_of_addresses(text: str) -> Iterator[str]:
    """Yield the passwords in the addresses of a text, and the tokens that stand there without a user."""
    for match in (*_USERINFO.finditer(text), *_PASSWORD_WITH_SLASH.finditer(text)):
        user, _, password = match[0][:-1].partition(":")
        is_token = not password and len(user) >= TOKEN_LENGTH and any(map(str.isdigit, user))
        yield user if is_token else password
