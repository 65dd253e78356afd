"""Mask secrets in texts and values: by the name of their key, by known values, and by their form."""

import base64
import functools
import html
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

# Detection of secrets by name: of config keys, environment variables and files.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_ENDINGS = (
    "password", "passwords", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials",
    "apikey", "accesskey", "secretkey", "privatekey", "accountkey", "authkey", "sharedkey", "storagekey", "signingkey",
    "masterkey", "sshkey", "encryptionkey", "authtoken", "accesstoken", "apitoken", "hftoken", "bottoken", "idtoken",
    "sessiontoken", "refreshtoken", "securitytoken", "signature", "pwd", "dbpass", "sshpass", "userpass",
)  # fmt: skip
"""Endings of words that make a name secret."""
_SECRET_WORDS = _words(
    "passkey sas totp sig auth oauth authorization webhook webhooks bearer jwt cookie cookies cred creds otp"
)
"""Whole words that make a name secret."""
_HARMLESS_LAST_WORDS = _words(
    "file files path paths dir directory folder id ids name names type types mode method kind length len size count "
    "counts max min version ttl expiry expires expiration enabled disabled required optional url uri endpoint host "
    "server port provider class style format policy algorithm alg scheme field column index position positions weight "
    "weights loss prob probability dropout embedding embeddings idx limit strategy env variable var prefix suffix "
    "pattern sock socket plugin handler header"
)
"""Last words of names that are about a secret but do not hold it: `password_file`, `pad_token_id`."""
_TEXT_TOKEN_WORDS = _words(
    "pad eos bos cls sep mask unk special additional image video audio vision start end begin stop decoder encoder "
    "prefix suffix per num max min new next first last turn role boi eoi fim tool think reason class label sample "
    "query document word byte sub text prompt answer patch frame lang language src tgt speech timestamp "
    "newline eot sot middle blank space separator beginning placeholder entity reserved added"
)
"""A token whose name has one of these words is a piece of text: `pad_token`, `max_new_tokens`."""
_ACCESS_TOKEN_WORDS = _words("access auth api secret refresh bearer hf hub oauth")
"""`tokens` in the plural are secrets only with one of these words."""
_KEY_WORDS = _words(
    "api access account private secret shared storage encryption decryption crypto cipher ssh ssl tls rsa aes hmac "
    "gpg pgp signing auth client consumer subscription master service session license admin app deploy host function "
    "instrumentation ingest webhook bot sas openai anthropic kaggle stripe wandb hf huggingface google gcp aws azure "
    "s3 minio mlflow comet neptune sendgrid twilio datadog algolia cohere mistral groq gemini github gitlab slack "
    "databricks snowflake mongo redis"
)
"""A key whose name has one of these words before `key` gives access: `api_key`; others (`sort_key`) are just names."""
_SECRET_WORD_PAIRS = (["token", "value"], ["pass", "word"], ["pass", "phrase"])
_PASS_WORDS = _words("db user ftp sftp smtp imap mail admin root ssh http proxy redis mysql pg mongo sudo login")
"""Words before a last `pass` or `pw` that make the name secret: `db_pass`."""


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Tell whether a key, or one of its dotted parts, names a secret value."""
    return any(
        _is_secret_part([word.lower() for word in _WORD_PARTS.findall(part)]) for part in re.split(r"[./@]", name)
    )


def _is_secret_part(words: list[str]) -> bool:
    if not words:
        return False
    before, last = {*words[:-1]}, words[-1]
    if last in _HARMLESS_LAST_WORDS:
        return last in ("url", "uri", "endpoint") and "webhook" in before
    if last in ("token", "tokens"):
        return not before & _TEXT_TOKEN_WORDS and (last == "token" or bool(before & _ACCESS_TOKEN_WORDS))
    if last in ("key", "keys"):
        return bool(before & _KEY_WORDS)
    if last in ("pass", "pw"):
        return not before or words[-2] in _PASS_WORDS
    return (
        any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in words)
        or words[-2:] in _SECRET_WORD_PAIRS
    )


def is_secret_variable(name: str) -> bool:
    """Tell whether an environment variable holds a secret; the rule is broader than that for config keys."""
    words = [word.lower() for word in _WORD_PARTS.findall(name)]
    ends = words[-1:] in (["key"], ["keys"], ["pass"], ["pat"], ["pw"]) or words[-2:] == ["connection", "string"]
    return name not in ("PWD", "OLDPWD") and ((ends and len(words) > 1) or is_secret_name(name))


_SECRET_FILE = re.compile(
    r"\.env.*|.*\.(env|envrc|pem|key|p12|pfx|jks|keystore|kdbx|ppk|tfvars|tfstate)|id_[a-z0-9_-]+(\.pub)?"
    r"|.*credentials?\b.*|[._]netrc|\.npmrc|\.pypirc|\.pgpass|\.my\.cnf|\.htpasswd|\.dockercfg|\.databrickscfg|\.s3cfg"
    r"|\.boto|\.vault-token|\.?token|kaggle\.json|kubeconfig|(client[_-]?secrets?|service[_-]?account).*\.json"
    r"|.*secrets?(\.(ya?ml|json|toml|ini|cfg|conf|txt|properties))?"
)


def is_secret_file(path: str) -> bool:
    """Tell from a file's name whether programs keep secrets in it."""
    return _SECRET_FILE.fullmatch(PurePosixPath(path).name.lower()) is not None


# Mask secrets that can be told by their form: tokens, private keys, user and password of an address.


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
_WEBHOOK = re.compile(
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
    encoded = match[2].rstrip("=")
    try:
        decoded = base64.urlsafe_b64decode(encoded.replace("+", "-").replace("/", "_") + "=" * (-len(encoded) % 4))
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
    (("://",), _WEBHOOK, rf"\1/{MASK}"),
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


SHORTEST = 4
"""Characters that a value must have to be searched for in texts."""

_VARIABLE_DEFAULT = re.compile(r"(oc\.env\\?: ?(\w+) ?\\?,)([^}\s]+)")

_HINTS = (
    "pass", "pw", "secret", "token", "key", "cred", "sig", "auth", "hook", "bearer", "jwt", "cookie", "otp", "sas",
)  # fmt: skip
"""Parts of the names of secrets; a text without any of them is not searched for names."""
_PAIR = re.compile(
    r"""(?:(?<=%[0-9A-Fa-f]{2})|(?<![\w.%-])) (?P<name>[\w.-]++)
        (?P<sep>\\*["']?\]?[ \t]{0,3}
                (?:\\*=>?(?!=)|%3D|\\*:(?!//)(?:[ ]?[\w.\[\]|]{1,60}[ ]?=[ ]?(?=["']))?)
                [ \t]{0,3})""",
    re.VERBOSE | re.IGNORECASE,
)
"""A name and the separator before its value: `name=`, `name: `, `"name": `, `name: str = `, `name%3D`."""
_STRING = r"[bfru]{0,2}(?:\"(?:[^\"\\\n]|\\.)*+\"|'(?:[^'\\\n]|\\.)*+')"
_QUOTE = re.compile(r"\\*[\"']")
_QUOTED = re.compile(rf"(?:{_STRING})++|(\\+[\"'])(?:(?!\1)[^\n]){{0,4000}}\1", re.IGNORECASE)
_BARE = re.compile(
    r"(?:(?:Bearer|Basic|Token|Digest|Negotiate)[ ]+(?=\S))?(?:\\*\$\\*\{[^}\s]*\}|[\[{][^\]}\n]{0,200}[\]}]"
    r"|[\"']\S+|(?:[^\s,;&\"'<>)\]}\\]|\\(?![\"'nrt])|[\"'](?=\w)|[,)\]}](?=[^\s,;)\]}\"'\\]))++)",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"(?P<start>[+ -]?[ \t]*(?:- |export |set )?(?P<name>[\w.-]+)[ \t]*(?:=(?!=)|:(?=[ \t]|$))[ \t]*)"
    r"(?P<value>[^\s\"'{\[].*)?"
)
_OVERRIDE = re.compile(r"([+~]*[\w.@/-]+)=(.*)", re.DOTALL)
_MASKED = re.compile(r"^\*{3}$|(?<=://)\*{3}@|(?<=[\w\"'][=:])[ ]?[\"']?\*{3}(?![*\w])")
_IN_FLOW = re.compile(r"[^,}\]\"'\n]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?=[,}\]\s])", re.IGNORECASE)
_FLAG = re.compile(rf"(?<![\w-])(--[\w-]++)([ ]+)(?!is )({_STRING}|[^\s-]\S*)", re.IGNORECASE)
_NO_SECRET = re.compile(
    r"true|false|none|null|\**|\\*\$\\*\{(?:oc\.env\\*:)?[\w.]+\\*\}|[<>=~^!]{1,2} ?\d[\w.,<>=~^! *-]*"
    r"|\[[A-Z_]+\d*\]|<[/|]?\w+\|?>",
    re.IGNORECASE,
)
"""Values of secret names that are not secrets: nothing, a boolean, an interpolation; the version of a package; a
special token of a tokenizer."""
_WORDS = frozenset(("auto", "default", "required", "optional", "test", "train", "validation", "user", "admin", "root"))
"""Values that are not searched for, because they are common words in texts."""


def mask_secrets(text: str) -> str:
    """Replace the secrets in a text by `***`.

    The time is proportional to the length of the text: microseconds for a line.
    """
    return _mask_names(mask_shapes(_mask_known(text)))


def mask_code(text: str) -> str:
    """Mask source code, where an assigned value is a secret only if it is quoted: `token = tokens[0]` is not."""
    return _mask_names(mask_shapes(_mask_known(text)), only_quoted=True)


def mask_settings(text: str) -> str:
    """Mask YAML and similar formats (or a diff of them), where an unquoted value extends to the end of its line.

    Lines that belong to a secret by their indentation are masked too.
    """
    masked: list[str] = []
    depth: int | None = None
    for line in text.split("\n"):
        indent = len(line) - len(line[1:].lstrip())
        if depth is not None and indent > depth and line[1:].strip():
            masked.append(f"{line[:indent]}{MASK}")
            continue
        setting = _SETTING.fullmatch(line)
        value = setting["value"] or "|" if setting and is_secret_name(setting["name"]) else "null"
        depth = indent if value[0] in "|>" else None
        is_open = depth is not None or _NO_SECRET.fullmatch(value.strip())
        masked.append(line if setting is None or is_open else f"{setting['start']}{MASK}")
    return mask_secrets("\n".join(masked))


def mask_values(tree: Any) -> Any:
    """Replace the secrets in nested dicts and lists, e.g. of a config; everything else is unchanged."""
    return _mapped(tree, lambda text: MASK if text in _known().exact else mask_secrets(text))


def without_secrets(tree: Any) -> Any:
    """Mask only what the tree itself shows to be secret, so that the result is the same in every environment.

    Names count only in a text with a `=` (settings, an address with parameters) and not in others, such as a prompt.
    """
    return _mapped(tree, lambda text: _mask_names(mask_shapes(text)) if "=" in text else mask_shapes(text))


def mask_override(override: str) -> str:
    """Mask the whole value of an override that is secret by its key or as a known value; else mask secrets in it."""
    match = _OVERRIDE.fullmatch(override)
    if match is not None:
        key, value = match[1], match[2].strip().strip("\"'")
        if (is_secret_name(key) and not _NO_SECRET.fullmatch(value)) or value in _known().exact:
            return f"{key}={MASK}"
    return mask_secrets(override)


def find_masked(tree: Any, key: str = "") -> str | None:
    """Return the dotted key of a value that has the mask in place of a secret and so can't be used, or None."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        keys = (find_masked(value, f"{key}.{name}" if key else str(name)) for name, value in items)
        return next(filter(None, keys), None)
    return key if isinstance(tree, str) and _MASKED.search(tree) else None


def learn_secrets(tree: Any) -> None:
    """Remember the secrets of a config or of overrides, so that later output is searched for them."""
    share_secrets(frozenset(filter(_is_searched_for, _secrets_of(tree))))


def share_secrets(values: frozenset[str] = frozenset()) -> frozenset[str]:
    """Add secrets that another process learned; return all learned ones, to hand to other processes."""
    global _learned
    if not values <= _learned:
        _learned |= values
    return _learned


def _mapped(tree: Any, mask: Callable[[str], str], secret: bool = False) -> Any:
    """Mask the texts of a tree.

    Args:
        secret: a key above names a secret, so that everything below it is one.
    """
    if isinstance(tree, dict):
        return {key: _mapped(value, mask, secret or _names_secret(tree, key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mapped(value, mask, secret) for value in tree]
    if isinstance(tree, str):
        return MASK if secret and not _NO_SECRET.fullmatch(tree) else mask(tree)
    return MASK if secret and isinstance(tree, int | float) and not isinstance(tree, bool) else tree


def _names_secret(tree: dict[Any, Any], key: Any) -> bool:
    """Tell whether the value of a key is a secret, by the key itself or as in `{name: password, value: ...}`."""
    name = str(tree.get("name", tree.get("key", ""))) if key == "value" else str(key)
    return is_secret_name(name)


def _mask_names(text: str, only_quoted: bool = False) -> str:
    """Mask the values whose names say that they are secrets."""
    if not _may_name_secrets(text):
        return text
    parts, done = [], 0
    for start, end in _named_values(text, only_quoted):
        quotes = _QUOTE.match(text, start)
        quote = quotes[0] if quotes and text.endswith(quotes[0], start, end) else ""
        parts += text[done:start], f"{quote}{MASK}{quote}"
        done = end
    text = "".join([*parts, text[done:]])
    if "oc.env" in text:
        text = _VARIABLE_DEFAULT.sub(lambda m: m[1] + MASK if is_secret_variable(m[2]) else m[0], text)
    return _FLAG.sub(lambda m: f"{m[1]}{m[2]}{MASK}" if is_secret_name(m[1]) else m[0], text) if "--" in text else text


def _may_name_secrets(text: str) -> bool:
    small = text.lower()
    return any(hint in small for hint in _HINTS)


def _named_values(text: str, only_quoted: bool = False) -> Iterator[tuple[int, int]]:
    """Yield start and end of each value whose name says that it is a secret."""
    done = 0
    for match in _PAIR.finditer(text):
        if match.start() < done or not is_secret_name(match["name"]):
            continue
        # A quoted string within code can hold an address or a setting, whose values are not quoted.
        is_code = only_quoted and text[match.start() - 1 : match.start()] not in (";", "?", "&", "'", '"')
        value = _QUOTED.match(text, match.end()) or (None if is_code else _bare_value(text, match))
        if value is not None and not _NO_SECRET.fullmatch(value[0].strip("\\\"' ")):
            yield value.span()
            done = value.end()


def _bare_value(text: str, pair: re.Match[str]) -> re.Match[str] | None:
    """Match a value without quotes; return None if an explanation or a count follows instead of a value."""
    sep, before = pair["sep"], text[max(0, pair.start() - 40) : pair.start()].rstrip()
    if sep[:1] in ("'", '"') and _NUMBER.match(text, pair.end()):  # JSON: a count per class, of a class with this name
        return None
    if sep == ": " and before.endswith(("{", ",")) and "{" in before:
        return _IN_FLOW.match(text, pair.end())
    if (sep == ": " and "." in pair["name"]) or (sep == ":" and before.endswith("/")):  # a message about a key; a path
        return None
    return _BARE.match(text, pair.end())


class _KnownSecrets(NamedTuple):
    """The secrets whose values are known."""

    state: tuple[Any, ...]
    """The state that they were found in, to notice a change."""
    names: tuple[str, ...] = ()
    """Environment variables that hold some of them."""
    pattern: re.Pattern[str] | None = None
    forms: tuple[str, ...] = ()
    """Strings that `pattern` matches; searching for them first is twenty times as fast."""
    exact: frozenset[str] = frozenset()
    """Values that are secrets when they are a whole text, numbers included."""


_learned: frozenset[str] = frozenset()
_cached = _KnownSecrets(())


def _known() -> _KnownSecrets:
    """Return the known secrets, recompiled if learned ones, variables with one, or the variable count changed."""
    global _cached
    last = _cached
    if last.state != _state(last.names):
        held = {name: set(_secrets_of_variable(name, value)) for name, value in os.environ.items()}
        names = tuple(name for name, values in held.items() if values)
        exact = frozenset(filter(_is_searched_for, set().union(_learned, *held.values())))
        forms = {form: value for value in exact if not _is_number(value) for form in _forms(value)}
        ordered = sorted(forms, key=len, reverse=True)
        pattern = re.compile("|".join(_bounded(form, forms[form]) for form in ordered)) if ordered else None
        _cached = last = _KnownSecrets(_state(names), names, pattern, tuple(ordered), exact)
    return last


def _state(names: tuple[str, ...]) -> tuple[Any, ...]:
    return (_learned, len(os.environ), *map(os.environ.get, names))


def _mask_known(text: str) -> str:
    known = _known()
    if known.pattern is None or not any(form in text for form in known.forms):
        return text
    return known.pattern.sub(MASK, text)


def _is_searched_for(value: str) -> bool:
    return len(value) >= SHORTEST and value.lower() not in _WORDS and not _NO_SECRET.fullmatch(value)


def _is_number(value: str) -> bool:
    """Tell whether a value is a short number, which occurs in too many places: step 1234 of 2000."""
    return len(value) < 8 and value.replace(".", "", 1).isdigit()


def _bounded(form: str, value: str) -> str:
    """Build the pattern of a form; a short value, or a possible word or number, matches only as a whole word."""
    is_word = len(value) < 8 or value.isalpha() or value.isdigit()
    return rf"(?<![A-Za-z0-9_]){re.escape(form)}(?![A-Za-z0-9_])" if is_word else re.escape(form)


def _forms(value: str) -> set[str]:
    """Return the forms of a value in shell quotes, JSON, YAML, Python, addresses, HTML, and Hydra's overrides."""
    texts = {value, value.strip(), *(line.strip() for line in value.splitlines() if len(line) >= 16)}
    forms = set(texts)
    for text in texts:
        forms |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
        forms |= {text.replace("'", other) for other in ("'\"'\"'", "''", "\\'")} | {text.replace('"', '\\"')}
        forms |= {urllib.parse.quote(text, safe, errors="surrogateescape") for safe in ("/", "")}
        forms |= {urllib.parse.quote_plus(text, errors="surrogateescape")}
        forms |= {html.escape(text), re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", text)}
    return {form for form in forms if len(form) >= SHORTEST}


def _secrets_of_variable(name: str, value: str) -> Iterator[str]:
    if is_secret_variable(name):
        is_file = value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))
        yield from () if is_file else (value,)
    yield from _secrets_in(value)


def _secrets_of(tree: Any, secret: bool = False) -> Iterator[str]:
    """Yield the secrets of a tree.

    Args:
        secret: a key above names a secret, so that everything below it is one.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _secrets_of(value, secret or _names_secret(tree, key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _secrets_of(value, secret)
    elif isinstance(tree, str):
        yield from (tree, tree.strip("\"'")) if secret else _secrets_in(tree)
    elif secret and not isinstance(tree, bool) and tree is not None:
        yield str(tree)


def _secrets_in(text: str) -> Iterator[str]:
    """Yield the values of secret names, and the passwords of addresses."""
    setting = _OVERRIDE.fullmatch(text)
    if setting is not None and is_secret_name(setting[1]):
        yield from (setting[2], setting[2].strip("\"'"))
    if _may_name_secrets(text):
        yield from (text[start:end].strip("\"'") for start, end in _named_values(text) if text[start - 1] in "=\"'")
    for match in _VARIABLE_DEFAULT.finditer(text) if "oc.env" in text else ():
        yield from (match[3],) if is_secret_variable(match[2]) else ()
    if "://" in text:
        yield from passwords_of_addresses(text)
