"""Detection of secrets by name: of config keys, environment variables and files."""

import functools
import re
from pathlib import PurePosixPath


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ENDINGS = (
    "password", "passwords", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials",
    "apikey", "accesskey", "secretkey", "privatekey", "accountkey", "authkey", "sharedkey", "storagekey", "signingkey",
    "masterkey", "sshkey", "encryptionkey", "authtoken", "accesstoken", "apitoken", "hftoken", "bottoken", "idtoken",
    "sessiontoken", "refreshtoken", "securitytoken", "signature", "pwd", "dbpass", "sshpass", "userpass",
)  # fmt: skip
"""Endings of words that make a name secret."""
_WHOLE = _words(
    "passkey sas totp sig auth oauth authorization webhook webhooks bearer jwt cookie cookies cred creds otp"
)
"""Whole words that make a name secret."""
_TELL_NOTHING = _words(
    "file files path paths dir directory folder id ids name names type types mode method kind length len size count "
    "counts max min version ttl expiry expires expiration enabled disabled required optional url uri endpoint host "
    "server port provider class style format policy algorithm alg scheme field column index position positions weight "
    "weights loss prob probability dropout embedding embeddings idx limit strategy env variable var prefix suffix "
    "pattern sock socket plugin handler header"
)
"""Last words of names that are about a secret but do not hold it: `password_file`, `pad_token_id`."""
_TOKENS_OF_TEXT = _words(
    "pad eos bos cls sep mask unk special additional image video audio vision start end begin stop decoder encoder "
    "prefix suffix per num max min new next first last turn role boi eoi fim tool think reason class label sample "
    "query document word byte sub text prompt answer patch frame lang language src tgt speech timestamp "
    "newline eot sot middle blank space separator beginning placeholder entity reserved added"
)
"""A token whose name has one of these words is a piece of text: `pad_token`, `max_new_tokens`."""
_TOKENS_OF_ACCESS = _words("access auth api secret refresh bearer hf hub oauth")
"""`tokens` in the plural are secrets only with one of these words."""
_KEYS = _words(
    "api access account private secret shared storage encryption decryption crypto cipher ssh ssl tls rsa aes hmac "
    "gpg pgp signing auth client consumer subscription master service session license admin app deploy host function "
    "instrumentation ingest webhook bot sas openai anthropic kaggle stripe wandb hf huggingface google gcp aws azure "
    "s3 minio mlflow comet neptune sendgrid twilio datadog algolia cohere mistral groq gemini github gitlab slack "
    "databricks snowflake mongo redis"
)
"""A key whose name has one of these words before `key` gives access: `api_key`; others (`sort_key`) are just names."""
_TWO = (["token", "value"], ["pass", "word"], ["pass", "phrase"])
_PASS_OF = _words("db user ftp sftp smtp imap mail admin root ssh http proxy redis mysql pg mongo sudo login")
"""Words before a last `pass` or `pw` that make the name secret: `db_pass`."""


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Tell whether a key, or one of its dotted parts, names a secret value."""
    return any(_is_secret_part([word.lower() for word in _WORDS.findall(part)]) for part in re.split(r"[./@]", name))


def _is_secret_part(words: list[str]) -> bool:
    if not words:
        return False
    before, last = {*words[:-1]}, words[-1]
    if last in _TELL_NOTHING:
        return last in ("url", "uri", "endpoint") and "webhook" in before
    if last in ("token", "tokens"):
        return not before & _TOKENS_OF_TEXT and (last == "token" or bool(before & _TOKENS_OF_ACCESS))
    if last in ("key", "keys"):
        return bool(before & _KEYS)
    if last in ("pass", "pw"):
        return not before or words[-2] in _PASS_OF
    return any(word in _WHOLE or word.endswith(_ENDINGS) for word in words) or words[-2:] in _TWO


def is_secret_variable(name: str) -> bool:
    """Tell whether an environment variable holds a secret; the rule is broader than that for config keys."""
    words = [word.lower() for word in _WORDS.findall(name)]
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
