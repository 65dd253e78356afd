"""Mask what is a secret by its own look: a token, a private key, the user and the password of an address."""

import re
from collections.abc import Iterator

MASK = "***"

_BLOCK = re.compile(r"(-----BEGIN [A-Z0-9 ]+-----)(.*?)(-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_TOKENS = {
    **dict.fromkeys(("hf_", "npm_"), r"[A-Za-z0-9]{8,}"),
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), r"\w{16,}"),
    **dict.fromkeys(("glpat-", "glrt-", "gldt-", "glptt-", "glft-", "glsoat-", "glcbt-", "glagent-"), r"[\w-]{16,}"),
    **dict.fromkeys(("sk-", "xai-"), r"(?<!-sk-)(?<!-xai-)(?=[\w-]{0,200}\d)[\w-]{16,}"),  # sk-learn-... is none
    **dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_"), r"\w{8,}"),
    **dict.fromkeys(("AKIA", "ASIA"), r"[A-Z0-9]{12,}"),
    **dict.fromkeys(("AIza", "nvapi-", "pplx-", "pypi-", "hvs.", "AGE-SECRET-KEY-"), r"[\w-]{16,}"),
    **dict.fromkeys(("r8_", "gsk_", "dckr_pat_", "dop_v1_", "shpat_", "KGAT_", "ntn_"), r"[\w-]{16,}"),
    **dict.fromkeys(("ya29.", "GOCSPX-", "xapp-"), r"[\w-]{8,}"),
    "dapi": r"[A-Za-z0-9]{16,}(?:-\d+)?",
    "xox": r"[a-z]-[\w-]{6,}",
    "SG.": r"[\w-]{8,}\.[\w-]{8,}",
    "eyJ": r"[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?",
}
"""How tokens begin, and what they go on with: of Hugging Face, npm, GitHub, GitLab, OpenAI, xAI, Stripe, AWS, Google,
NVIDIA, Perplexity, PyPI, Vault, age, Replicate, Groq, Docker, DigitalOcean, Shopify, Kaggle, Notion, Slack,
Databricks, SendGrid; JSON web tokens."""
_TOKEN = re.compile("(?<![A-Za-z0-9])(?:" + "|".join(re.escape(begin) + rest for begin, rest in _TOKENS.items()) + ")")
_HOOK = re.compile(
    r"(https?\\*://(?:hooks\.[\w.:-]+|[\w-]+\.webhook\.[\w.:-]+|[\w.:-]+(?:/[\w.-]+){0,5}/webhooks?))/[^\s'\"<>,)\]}]*"
)
_BEARER = re.compile(r"(\bBearer\s+)[\w.~+/-]{6,}=*", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/\s?#'\"<>]+@")
# A password may hold slashes; but the port of an address without a password is none.
_PASSWORD_WITH_SLASH = re.compile(r"(?<=://)[^/\s:@\[]*:(?!\d+[/?#])[^\s'\"]{1,200}@")
_QUOTED_USERINFO = re.compile(r"(%3A%2F%2F)(?:(?!%2F|%40)[^\s&'\"]){1,200}%40", re.IGNORECASE)


def mask_shapes(text: str) -> str:
    """Replace secrets by `***`.

    The expressions take time in proportion to the text; most texts have none of what they begin with, which is found
    out in a microsecond.
    """
    if "-----BEGIN" in text:
        text = _BLOCK.sub(_mask_block, text)
    if any(begin in text for begin in _TOKENS):
        text = _TOKEN.sub(MASK, text)
    if "://" in text:
        text = _PASSWORD_WITH_SLASH.sub(f"{MASK}@", _HOOK.sub(rf"\1/{MASK}", text))
        text = _USERINFO.sub(f"{MASK}@", text)
    if "%40" in text:
        text = _QUOTED_USERINFO.sub(rf"\1{MASK}%40", text)
    return _BEARER.sub(rf"\1{MASK}", text) if "earer" in text or "EARER" in text else text


def passwords_of_addresses(text: str) -> Iterator[str]:
    """Give the passwords that stand in the addresses of a text."""
    for match in (*_USERINFO.finditer(text), *_PASSWORD_WITH_SLASH.finditer(text)):
        yield match[0][:-1].partition(":")[2]


def _mask_block(match: re.Match[str]) -> str:
    """Keep the number of lines, and the first column: the text may be a diff."""
    first, *others = match[2].split("\n")
    shown = [f"{line[:1] if line[:1] in '+- ' else ''}{MASK}" if line.strip("+- \r") else line for line in others]
    return "\n".join([f"{match[1]}{MASK if first.strip() else ''}", *shown]) + match[3]
