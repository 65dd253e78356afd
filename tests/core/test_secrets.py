"""Secrets in every place where one can stand, and none of them in anything that is written or printed."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_DIGITS

from hfexp.commands import cli
from hfexp.core import provenance, secrets
from hfexp.core.compose import compose
from hfexp.core.config import to_config
from hfexp.core.identity import config_hash
from hfexp.core.provenance import git_state
from hfexp.core.secrets import (
    find_masked,
    is_secret_file,
    is_secret_name,
    is_secret_variable,
    mask_code,
    mask_override,
    mask_secrets,
    mask_settings,
    mask_values,
)

SOURCE = """
import transformers
import hfexp.data.sources

class Fail(transformers.TrainerCallback):
    def __init__(self, login):
        self.login = login

    def on_step_end(self, *args, **kwargs):
        raise ValueError(f"no access with {self.login}")

def rows(fail=False, **kwargs):
    if fail:
        raise ValueError(f"no access for {kwargs['password']} with {kwargs['by_file']}, as {kwargs!r}")
    return hfexp.data.sources.digits()
"""

VARIABLES = {
    "HF_TOKEN": "hf_CANARY01aaaaaaaaaaaa",
    "OPENAI_API_KEY": "CANARY02aaaaaaaaaaaa",
    "AWS_SECRET_ACCESS_KEY": "CANARY03/aa+aa==",
    "KAGGLE_KEY": "CANARY04aaaaaa",
    "DB_PASS": "CANARY05",
    "HF_PASSPHRASE": "CANARY06 with spaces",
    "TORCH_AUTH": "CANARY07a",
    "MLFLOW_TRACKING_PASSWORD": "CANARY08",
    "HF_ENDPOINT_URL": "https://user:CANARY09@h.example",
    "SHORT_PASSWORD": "CANRY",
    "QUOTED_PASSWORD": "CANARY10'quo\"ted",
    "STORAGE_CONNECTION_STRING": "AccountName=x;AccountKey=CANARY11==",
    "HF_KEY_OF_LINES": "-----BEGIN PRIVATE KEY-----\nCANARY12\n-----END PRIVATE KEY-----",
    "TORCH_COOKIE": "CANARY13",
    "DATABASE_URL": "postgresql://me:CANARY14@db.example/x",
    "HFEXP_WEBHOOK_URL": "https://h.example/CANARY15",
    "HF_ENDPOINT_OF_TEAM": "https://CANARY16aaaaaaaa@h.example",
}

PLACES = {
    "password": "CANARY20 with spaces, and (more)",
    "api_key": "CANARY21",
    "token": "CANARY22",
    "client_secret": "CANARY23",
    "access_key": "CANARY24",
    "accountKey": "CANARY25",
    "private_key": "CANARY26",
    "passphrase": "CANARY27",
    "auth": "CANARY28",
    "signature": "CANARY29",
    "db_pwd": "CANARY30",
    "slack_webhook": "CANARY31",
    "pin_password": "20262026",
    "conn": "Server=x;User ID=sa;Password=CANARY32;Encrypt=yes",
    "azure": "DefaultEndpointsProtocol=https;AccountKey=CANARY33==",
    "bus": "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=CANARY34=",
    "jdbc": "jdbc:x://h/db?user=me&password=CANARY35",
    "a": "https://h.example/x?token=CANARY36&y=1",
    "b": "https://h.example/x?access_token=CANARY37",
    "c": "https://s3.example/x?AWSAccessKeyId=A&Signature=CANARY38&Expires=1",
    "d": "https://g.example/x?X-Goog-Signature=CANARY39",
    "e": "https://u:CANARY40@h.example/x",
    "f": "https://CANARY41@h.example/x",
    "g": "ftp://u:CANARY42/with@slash@h.example/x",
    "h": "https://h.example/x?X-Amz-Credential=CANARY43&X-Amz-Security-Token=CANARY44&sig=CANARY45",
    "i": "https://h.example/to?url=https%3A%2F%2Fu%3ACANARY46%40g.example%2F%3Ftoken%3DCANARY47",
    "k": "dapiCANARY48aaaaaaaaaaaaaaaa",
    "l": "eyJhbGciOiJIUzI1NiJ9.CANARY49.sig",
    "m": "xoxb-1-CANARY50",
    "n": "ya29.CANARY51aaaa",
    "o": "AIzaCANARY52aaaaaaaaaaaaaaaaaaa",
    "p": "glpat-CANARY53aaaaaaaaaa",
    "q": "AKIACANARY54AAAAAA",
    "r": "sk-CANARY55aaaaaaaaaaa",
    "s": "ghp_CANARY56aaaaaaaaaaaaaa",
    "t": "https://hooks.slack.com/services/T0/B0/CANARY57",
    "u": "https://discord.com/api/webhooks/1/CANARY58",
    "v": "Bearer CANARY59",
    "w": "curl --password CANARY60 h.example",
    "x": "curl -u me:CANARY84 h.example",
    "y": "https://h.example/x?key=CANARY85aaaa&page=2",
    "z": "abc8Q~CANARY86aaaaaaaaaaaaaaaaaaaaaaa",
    "telegram": "123456789:AACANARY87aaaaaaaaaaaaaaaaaaaaaaa",
}
INTERPOLATED = (
    "DB_PASS",
    "QUOTED_PASSWORD",
    "SHORT_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "HF_PASSPHRASE",
    "HF_KEY_OF_LINES",
)
IN_FILE = {
    "_target_": "my_data.rows",
    "by_file": "${.deep.credentials.login}",
    "pad_token": "[PAD]",
    "sort_key": "when",
    "deep": {
        "credentials": {"user": "CANARY61", "login": "CANARY62: with spaces"},
        "headers": {"Authorization": "Basic CANARY63"},
    },
    "setting": {"name": "db_password", "value": "CANARY88"},
    "list": [{"secret": "CANARY64"}, {"secret": 20262027}, {"tokenizer": "bert", "max_new_tokens": 20}],
    "block": "first line\npassword=CANARY65\n",
    "address": "http://h.example:8080/a/b.csv?page=2",
}
OVERRIDES = (
    "dataset=own",
    "++tracking.tags.hook=https://hooks.example/T0/CANARY66",
    "++tracking.tags.api_key=CANARY67",
    "++dataset.source.dict={user: me, password: CANARY68 with spaces}",
    "++dataset.source.default=${oc.env:NO_PASSWORD,CANARY69}",
)
TRACKED = {
    ".env": "DB_PASSWORD=CANARY70\n",
    "deploy.pem": "CANARY71\n",
    "id_rsa": "CANARY72\n",
    "aws_credentials.json": "CANARY73\n",
    ".netrc": "machine h login u password CANARY74\n",
    ".npmrc": "//h/:_authToken=CANARY75\n",
    "sub/.env.local": "CANARY76\n",
    "settings.yaml": "seed: 3\ndb:\n  password: CANARY77 with spaces\n  secret: |\n    CANARY78\n    CANARY79\n"
    "  port: 5432\n",
    "code.py": "token = tokens[0]\nAPI_KEY = 'CANARY80'\n",
    "notes.txt": "-----BEGIN RSA PRIVATE KEY-----\nCANARY81\n-----END RSA PRIVATE KEY-----\n",
}


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_learned", frozenset())


@pytest.fixture
def canaries(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A repository with secrets in all its places; what is typed to begin a run in it."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(place.parent))
    for name in TRACKED:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("as it was\n")
    commands = (
        "init -q .",
        "add -A",
        "-c user.name=a -c user.email=b commit -qm x",
        "remote add origin https://CANARY82@dev.example/r",
    )
    for command in commands:
        subprocess.run(["git", *command.split()], check=True)
    for name, content in TRACKED.items():
        (place / name).write_text(content)
    (place / "untracked.env").write_text("SECRET=CANARY83")
    (place / "conf/dataset").mkdir(parents=True)
    (place / "conf/dataset/own.yaml").write_text(yaml.safe_dump({"source": IN_FILE}))
    (place / "my_data.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(place))
    given = [f"dataset.source.{name}={json.dumps(value)}" for name, value in PLACES.items()]
    given += [f"dataset.source.env_{number}=${{oc.env:{name}}}" for number, name in enumerate(INTERPOLATED)]
    return ("--config-dir", "conf", *SMALL_DIGITS, "debug=fast", *OVERRIDES, *given)


def found(place: Path, printed: str) -> dict[str, set[str]]:
    """Canaries in what was printed, and in all files but those in which the test has put them."""
    given = {*TRACKED, "untracked.env", "conf/dataset/own.yaml", "my_data.py"}
    contents = {"printed": printed.encode()}
    for path in place.rglob("*"):
        name = str(path.relative_to(place))
        if path.is_file() and name not in given and not name.startswith(".git/"):
            contents[name] = path.read_bytes()
    hits: dict[str, set[str]] = {}
    for name, content in contents.items():
        for canary in re.findall(rb"CANARY\d\d|CANRY|2026202[67]", content):
            hits.setdefault(canary.decode(), set()).add(name)
    return hits


def test_no_secret_is_written_or_printed(
    canaries: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(set(re.findall(r"CANARY\d\d", repr([VARIABLES, PLACES, IN_FILE, OVERRIDES, TRACKED])))) >= 60
    assert cli.main([*canaries]) == 0
    assert cli.main([*canaries, "seed=3", "dataset.source.fail=true"]) == 1
    fail = "++trainer.callbacks.fail={_target_: my_data.Fail, login: '${dataset.source.token}'}"
    assert cli.main([*canaries, "seed=4", fail]) == 1
    assert cli.main([*canaries, "seed=six"]) == 2
    printed = "".join(capfd.readouterr())
    assert "changed: " in printed
    assert "no access for *** with ***, as {" in printed
    assert found(place, printed) == {}
    (run,) = place.glob("outputs/debug/*-s42-*")
    _require_readable(run)
    failed = "".join(path.read_text() for path in place.glob("outputs/debug/*-s4-*/artifacts/traceback.txt"))
    assert "ValueError: no access with ***" in failed


def _require_readable(run: Path) -> None:
    """What is no secret is as it was."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    source = config["dataset"]["source"]
    assert source["password"] == source["env_0"] == source["env_1"] == source["env_2"] == "***"
    assert (source["pad_token"], source["sort_key"]) == ("[PAD]", "when")
    assert source["list"] == [{"secret": "***"}, {"secret": "***"}, {"tokenizer": "bert", "max_new_tokens": 20}]
    assert source["conn"] == "Server=x;User ID=sa;Password=***;Encrypt=yes"
    assert source["a"] == "https://h.example/x?token=***&y=1"
    assert source["address"] == "http://h.example:8080/a/b.csv?page=2"
    assert config["trainer"]["args"]["learning_rate"] > 0
    overrides = yaml.safe_load((run / "overrides.yaml").read_text())
    assert {"dataset=own", "++dataset.source.env_0=${oc.env:DB_PASS}", "++dataset.source.token=***"} <= {*overrides}
    diff = (run / "artifacts/git.diff").read_text()
    for name in (".env", "deploy.pem", "id_rsa", "aws_credentials.json", ".netrc", ".npmrc", "sub/.env.local"):
        assert f'# left out, as it may hold secrets: "{name}"\n' in diff
    assert "# untracked: untracked.env\n" in diff
    for line in ("+seed: 3", "+  password: ***", "+  port: 5432", "+token = tokens[0]", "+API_KEY = '***'"):
        assert line in diff.splitlines()
    applied = subprocess.run(["git", "apply", "--cached", "--check"], input=diff, text=True, capture_output=True)
    assert applied.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("tracking.uri=http://user:CANARY84@127.0.0.1:9",), 0),
        (("plan", "--no-probe"), 0),
        (("-m", "seed=4,5", "search.name=s"), 0),
        (("-m", "seed=4,5", "dataset.source.fail=true"), 1),
        (("launch=ddp", "launch.num_processes=2", "trainer.args.use_cpu=true"), 0),
        (("launch=ddp", "launch.num_processes=2", "trainer.args.use_cpu=true", "dataset.source.fail=true"), 1),
    ],
    ids=["the server is away", "a plan", "a sweep", "a sweep that fails", "two processes", "two processes that fail"],
)
def test_no_secret_leaves_other_kinds_of_runs(
    words: tuple[str, ...], code: int, canaries: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = words[:1] if words[0] == "plan" else ()
    assert cli.main([*command, *canaries, *words[len(command) :]]) == code
    assert found(place, "".join(capfd.readouterr())) == {}


def test_what_is_shown_of_a_configuration_has_no_secrets(
    canaries: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*canaries, "--cfg", "job", "--resolve"]) == 0
    printed = capfd.readouterr().out
    assert found(place, printed) == {}
    assert yaml.safe_load(printed)["dataset"]["source"]["pad_token"] == "[PAD]"


def test_a_secret_is_not_part_of_an_experiment(place: Path) -> None:
    words = ("experiment=digits_vit", "dataset.source.user=me")
    alone, first, second, other = (
        config_hash(to_config(compose(*words, *more)[0]))
        for more in (
            (),
            ("dataset.source.password=abc",),
            ("dataset.source.password=xyz",),
            ("dataset.source.rows=5",),
        )
    )
    assert first == second
    assert len({alone, first, other}) == 3


@pytest.mark.parametrize(
    "word",
    ["dataset.source.password=***", "dataset.source.a='https://***@h/x'", "dataset.source.c='A=1;Password=***'"],
)
def test_the_mask_is_not_taken_for_a_value(word: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment=digits_vit", word]) == 2
    assert f"{word.partition('=')[0]}: *** stands for a secret, which is not recorded" in capfd.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "word", ["dataset.source.password=abcd,efgh", "dataset.source.a='https://u:p@h/1','https://u:p@h/2'"]
)
def test_secrets_are_not_swept(word: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", "experiment=digits_vit", word]) == 2
    error = capfd.readouterr().err
    assert "its values are secrets" in error
    assert "efgh" not in error
    assert list(place.iterdir()) == []


def test_names_that_tell_secrets() -> None:
    for name in (
        "password", "DB_PASS", "apiKey", "APIKey", "account_key", "AccountKey", "X-Amz-Security-Token", "hub_token",
        "dataset.source.credentials.user", "private_key", "auth", "sig", "webhook_url", "userpassword", "oauth_tokens",
        "clientSecret", "password2", "apitoken", "sharedaccesssignature", "dbpwd", "SharedAccessKey", "smtp_pass",
    ):  # fmt: skip
        assert is_secret_name(name), name
    for name in (
        "tokenizer", "num_tokens", "max_new_tokens", "pad_token", "eos_token", "cls_token", "special_tokens",
        "pad_token_id", "token_classification", "token_type_ids", "model_key", "sort_key", "key", "keys", "keyword",
        "monkey", "author", "authors", "passes", "num_passes", "signal", "design", "password_file",
        "signature_version",
        "tokens_per_second", "private", "access", "secretary", "compass", "bypass", "first_pass",
    ):  # fmt: skip
        assert not is_secret_name(name), name
    assert is_secret_variable("STRIPE_KEY")
    assert is_secret_variable("LDAP_BIND_PW")
    assert not is_secret_variable("OLDPWD")
    assert not is_secret_variable("TOKENIZERS_PARALLELISM")
    for name in (
        ".env",
        "a/.env.production",
        "x.pem",
        "server.key",
        "id_ed25519",
        "gcp-credentials.json",
        "secrets.toml",
    ):
        assert is_secret_file(name), name
    for name in ("secrets.py", "tests/test_secrets.py", "id_to_label.json", "environment.yml", "tokenizer.json"):
        assert not is_secret_file(name), name


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer=bert pad_token=[PAD] eos_token=</s> max_new_tokens=20 sort_key=name model_key=x",
        "the tokenizer has no padding token: '[SEP]', which ends a text; token: '<|endoftext|>', token: '</s>'",
        "step 1234/2000 loss 0.1234 seed=1234 2026-11-28 14:02:58,123",
        "http://127.0.0.1:5000/#/models/a@best models:/pets@best me@host.org: hello http://[::1]:5000/a@b",
        "hf://datasets/org/name@0a1b2c/data/train.parquet https://h.example:8080/a?page=2&size=3 C:\\a\\b",
        "trainer.args.hub_token: must be a text (dataset.source.token)",
        '{"classes": {"passcode_forgotten": 45, "token": 3}, "eval_f1_signature": 0.5}',
        "password=${oc.env:DB_PASS} token=null use_auth_token=true password=",
        "PYTHONPATH=/home/me/secrets:/home/me/code google-auth==2.1 token == 3",
        "global-attention-pooling-layer sk-learn-contrib-something sk_logistic_regression_baseline",
        "Basic training, python -u x.py:3, basic tokenizer https://h.example/x?key=title&code=DE",
        "model.path=google/vit-base-patch16-224 trainer.args.learning_rate=3e-4 metrics=[accuracy,f1]",
    ],
)
def test_what_is_no_secret_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", "1234")
    assert mask_secrets(text) == text


def test_masking_is_exact_and_idempotent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", "hush")
    cases = {
        "see hush, not hushed": "see ***, not hushed",
        "{'password': 'a b', \"token\": \"c\", 'n': 3}": "{'password': '***', \"token\": \"***\", 'n': 3}",
        '{"a": "{\\"token\\": \\"b\\", \\"n\\": 1}"}': '{"a": "{\\"token\\": \\"***\\", \\"n\\": 1}"}',
        "Foo(token=abc), b=2": "Foo(token=***), b=2",
        'def f(password: str = "abc", n=1)': 'def f(password: str = "***", n=1)',
        "x?a=1&token=b%2Fc&d=2": "x?a=1&token=***&d=2",
        "password=O'Brien": "password=***",
        '["Authorization", "Basic bWU6aHVzaA=="]': '["Authorization", "Basic ***"]',
        "${oc.env:DB_PASS,other}": "${oc.env:DB_PASS,***}",
        "-----BEGIN A KEY-----\n+abc\n+def\n": "-----BEGIN A KEY-----\n+***\n+***\n",
        "": "",
        "***": "***",
    }
    for text, masked in cases.items():
        assert mask_secrets(text) == masked
        assert mask_secrets(masked) == masked
    assert mask_override("+a.password=b c, d") == "+a.password=***"
    assert mask_override("a.b=hush") == "a.b=***"
    assert mask_values({"a": {"token": None, "use_auth": True}, "credentials": ["x"], "key": "hush", "n": 1234}) == {
        "a": {"token": None, "use_auth": True}, "credentials": ["***"], "key": "***", "n": 1234,
    }  # fmt: skip
    assert mask_settings("a:\n  auth:\n    user: x\n  n: 1") == "a:\n  auth:\n    ***\n  n: 1"
    assert (
        mask_code("token = a.b[0]\nurl = f'https://h/?token=abc&n=1'")
        == "token = a.b[0]\nurl = f'https://h/?token=***&n=1'"
    )
    assert find_masked({"a": ["x", {"b": "https://***@h"}]}) == "a.1.b"
    assert find_masked({"a": "**bold** and ***both***, 2***3"}) is None


def test_a_changed_variable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first-value", "second-value"):
        monkeypatch.setenv("DB_PASS", value)
        assert mask_secrets(f"see {value}") == "see ***"
    monkeypatch.delenv("DB_PASS")
    assert mask_secrets("see second-value") == "see second-value"


@pytest.mark.parametrize(
    "unit",
    ["a", "token=x ", "http://a:b@c/ ", "://a:", 'password="', 'token=\\"', "-----BEGIN A-----", "%3A%2F%2F",
     "token: [", "=", "sk-", "\\", "eyJaaaaaa.", "auth: Basic ", "https://a/", " ", "key "],
)  # fmt: skip
def test_masking_takes_time_in_proportion(unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        began = time.process_time()
        mask_secrets(text)
        return time.process_time() - began

    assert seconds(2**18) < 16 * max(seconds(2**15), 0.02)


def _repository(place: Path, monkeypatch: pytest.MonkeyPatch, *settings: tuple[str, str]) -> None:
    """A repository with a changed file in the current directory, and these settings of its own."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(place.parent))
    (place / "a.csv").write_bytes(b"1\r\n")
    (place / "b.bin").write_bytes(bytes(range(256)))
    (place / "c.txt").write_bytes("Grün\n".encode("latin-1"))
    for command in ("init -q .", "add -A", "-c user.name=a -c user.email=b commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    (place / "a.csv").write_bytes(b"1\r\n2\r\n")
    (place / "b.bin").write_bytes(bytes(range(255, -1, -1)))
    (place / "c.txt").write_bytes("Grün\nBlüte\n".encode("latin-1"))
    (place / ".gitattributes").write_text("* filter=evil=er diff=evil\n")
    for name, value in settings:
        subprocess.run(["git", "config", name, value], check=True)


def test_git_starts_no_program_of_the_repository(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = f"touch {place}/started; cat"
    names = (
        "core.fsmonitor",
        "diff.external",
        "core.pager",
        "diff.evil.command",
        "diff.evil.textconv",
        "core.sshCommand",
    )
    names += ("filter.evil=er.clean", "filter.evil=er.process", "core.gitProxy", "core.alternateRefsCommand")
    hook = place / "hooks/post-index-change"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\n{start}")
    hook.chmod(0o755)
    settings = [(name, start) for name in names] + [
        ("filter.evil=er.required", "true"),
        ("core.hooksPath", str(hook.parent)),
    ]
    _repository(place, monkeypatch, *settings, ("extensions.worktreeConfig", "true"))
    subprocess.run(["git", "config", "--worktree", "filter.evil=er.smudge", start], check=True)
    (place / "started").unlink(missing_ok=True)
    state = git_state()
    assert not (place / "started").exists()
    assert "a.csv" in state["diff"]


def test_the_diff_is_what_git_applies_whatever_the_user_has_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "diff.external": "/bin/true", "color.ui": "always", "diff.noprefix": "true", "diff.mnemonicPrefix": "true",
        "diff.renames": "copies", "diff.context": "0", "diff.relative": "true", "core.quotePath": "true",
        "diff.wordRegex": ".",
    }  # fmt: skip
    _repository(place, monkeypatch, *settings.items())
    (place / "sub").mkdir()
    monkeypatch.chdir(place / "sub")
    diff = git_state()["diff"].encode("utf-8", "surrogateescape")
    monkeypatch.chdir(place)
    before = {name: (place / name).read_bytes() for name in ("a.csv", "b.bin", "c.txt")}
    subprocess.run(["git", "checkout", "-q", "--", "a.csv", "b.bin", "c.txt"], check=True)
    subprocess.run(["git", "apply"], input=diff, check=True)
    assert {name: (place / name).read_bytes() for name in before} == before


def test_git_fetches_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a partial clone, a diff fetches what is missing, by a command that the repository can choose."""
    settings = {
        "core.repositoryformatversion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::sh -c touch% {place}/started", "protocol.ext.allow": "always",
    }  # fmt: skip
    _repository(place, monkeypatch, *settings.items())
    blob = subprocess.check_output(["git", "rev-parse", "HEAD:a.csv"], text=True).strip()
    (place / ".git/objects" / blob[:2] / blob[2:]).unlink()
    state = git_state()
    assert not (place / "started").exists()
    assert state["diff"] == "# git diff failed: the uncommitted changes are not known\n"


def test_a_work_tree_elsewhere_is_not_recorded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "home/data").mkdir(parents=True)
    (place / "home/diary.txt").write_text("private\n")
    monkeypatch.chdir(place / "home/data")
    _repository(place / "home/data", monkeypatch, ("core.worktree", str(place / "home")))
    assert git_state() == {}


def test_a_huge_diff_is_left_out_and_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _repository(place, monkeypatch)
    monkeypatch.setattr(provenance, "LARGEST_DIFF", 100)
    assert git_state()["diff"] == "# git diff printed more than 100 bytes, which were left out\n"


def test_the_store_of_the_pages_is_in_no_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("hfexp.commands.ui.newest_run", lambda uri: None)
    monkeypatch.setattr("os.execve", lambda *given: asked.extend(given))
    cli.main(["ui", "--uri", "postgresql://me:CANARY@db.example/x"])
    _, command, environment = asked
    assert not any("CANARY" in word for word in command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:CANARY@db.example/x"


def test_each_secret_name_is_searched_for() -> None:
    for word in (*secrets._SECRET_WORDS, *secrets._SECRET_ENDINGS):
        assert mask_secrets(f"{word}=abcdef123456") == f"{word}=***"
