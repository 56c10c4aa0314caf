"""Identity of a campaign at Globus: service accounts and people, consents, and no prompt during a campaign."""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from facilities.globus.auth import TRANSFER_SERVER, Auth, ServiceAccount
from facilities.globus.http import HttpService, Request, refuse
from globus_sdk import GlobusError

from apps.base.errors import UserMistake
from workflows import login
from workflows.checks.login_status import login_status, require_services
from workflows.globus.identity import (
    LoginApp,
    LoginNeeded,
    ServiceAccountApp,
    collections_in,
    compute_client,
    globus_app,
    https_authorizer,
    transfer_client,
)

GUEST, MAPPED, WEB = (f"{digit * 8}-0000-4000-8000-00000000c011" for digit in "abc")
KINDS = {
    GUEST: {"display_name": "guest", "entity_type": "GCSv5_guest_collection"},
    MAPPED: {"display_name": "mapped", "entity_type": "GCSv5_mapped_collection", "high_assurance": False},
    WEB: {"display_name": "web", "entity_type": "GCSv5_guest_collection", "https_server": "https://g.example.org"},
}


@pytest.fixture
def service() -> Iterator[HttpService]:
    with HttpService() as running:
        yield running


@pytest.fixture
def auth(service: HttpService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Auth:
    """Globus on this machine, without a login."""
    stand_in = Auth(service)

    def described(request: Request, collection: str) -> Any:
        stand_in.token_of(request, TRANSFER_SERVER)
        if collection not in KINDS:
            raise refuse(404, "EndpointNotFound", "no such collection")
        return KINDS[collection]

    service.route("GET", "/v0.10/endpoint/([0-9a-f-]+)", described)
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET", "GLOBUS_SDK_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", service.url)
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", service.url)
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "compute"))
    return stand_in


@pytest.fixture
def account(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> ServiceAccount:
    made = auth.add_service_account()
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_ID", made.client_id)
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", made.secret)
    return made


@pytest.fixture
def person(auth: Auth) -> str:
    return auth.add_person("ada@example.org")


Browse = Callable[..., int]


@pytest.fixture
def browse(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> Browse:
    """Run the command for a person who opens each address in a browser and pastes the code."""
    shown: list[str] = []
    said = login.say
    said = login.say

    def say(text: str) -> None:
        shown.append(text)
        said(text)

    def address() -> str:
        return next(word for text in reversed(shown) for word in text.split() if word.startswith("http"))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(login, "say", say)
        monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
        monkeypatch.setattr("builtins.input", lambda: auth.log_in(address()))
        return login.main(arguments)

    return run


def problems(*collections: str) -> dict[str, str | None]:
    return dict(login_status(globus_app(), collections))


# -- service accounts -------------------------------------------------------------------------------------------


def test_a_service_account_needs_no_login_and_no_file(account: ServiceAccount, auth: Auth, tmp_path: Path) -> None:
    app = globus_app()
    assert isinstance(app, ServiceAccountApp)
    assert transfer_client(app, [GUEST]).get_endpoint(GUEST)["display_name"] == "guest"
    found = dict(login_status(app, [GUEST, MAPPED, WEB]))
    assert set(found.values()) == {None} and any(account.client_id in what for what in found)
    assert [what.partition(":")[0] for what in found][1:3] == ["Globus Compute", "Globus Transfer"]
    assert not list(tmp_path.rglob("*.db"))


def test_a_service_account_consents_by_requesting_a_token(account: ServiceAccount, auth: Auth) -> None:
    transfer_client(globus_app(), [GUEST, MAPPED]).get_endpoint(GUEST)
    assert auth.consents.has_data_access(account.client_id, account.client_id, MAPPED)
    assert not auth.consents.has_data_access(account.client_id, account.client_id, GUEST)


def test_tokens_of_an_account_are_renewed(account: ServiceAccount, auth: Auth) -> None:
    client = transfer_client(globus_app(), [GUEST])
    auth.expire_tokens()
    assert client.get_endpoint(GUEST)["display_name"] == "guest"


def test_a_secret_that_is_no_longer_valid(account: ServiceAccount, auth: Auth) -> None:
    client = transfer_client(globus_app(), [GUEST])
    auth.change_secret(account)
    auth.expire_tokens()
    with pytest.raises(UserMistake, match=f"refuses the service account {account.client_id}.*Set GLOBUS_COMPUTE") as e:
        client.get_endpoint(GUEST)
    assert account.secret not in str(e.value) and e.value.__suppress_context__
    ((what, problem),) = problems().items()
    assert what == "login" and "refuses the service account" in str(problem)


def test_half_of_an_account(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "hidden-word")
    with pytest.raises(UserMistake, match="SECRET is set without GLOBUS_COMPUTE_CLIENT_ID") as raised:
        globus_app()
    assert "hidden-word" not in str(raised.value)


def test_one_app_serves_many_threads(account: ServiceAccount, auth: Auth, service: HttpService) -> None:
    app = globus_app()
    clients = [transfer_client(app) for _ in range(8)]
    clients[0].get_endpoint(GUEST)
    service.clear()
    auth.expire_tokens()
    errors: list[Exception] = []

    def use(client: Any) -> None:
        try:
            assert client.get_endpoint(GUEST)["display_name"] == "guest"
        except (UserMistake, GlobusError) as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and 1 <= service.count_calls("/oauth2/token$") <= len(clients)


# -- people -----------------------------------------------------------------------------------------------------


def test_a_campaign_never_prompts(auth: Auth, person: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("there was a prompt"))
    app = globus_app()
    assert isinstance(app, LoginApp)
    with pytest.raises(LoginNeeded, match="not logged in.*Log in: python workflows/login.py$"):
        transfer_client(app, [GUEST])
    with pytest.raises(LoginNeeded, match="Log in: python workflows/login.py$"):
        compute_client(app).get_endpoint_status(GUEST)
    require_services(app)
    assert app.login_required()
    for force in (False, True):
        with pytest.raises(LoginNeeded, match="Globus requires a login"):
            app.login(force=force)


def test_a_login_lasts(auth: Auth, person: str, browse: Browse, capsys: Any, tmp_path: Path) -> None:
    assert browse() == 0
    out = capsys.readouterr().out
    assert "ok       login: ada@example.org (person" in out and "renewed automatically" in out
    storage = tmp_path / "compute" / "storage.db"
    assert stat.S_IMODE(storage.stat().st_mode) == 0o600 and stat.S_IMODE(storage.parent.stat().st_mode) == 0o700
    auth.expire_tokens()  # days later, in another process
    assert transfer_client(globus_app(), [GUEST]).get_endpoint(GUEST)["display_name"] == "guest"
    assert set(problems(GUEST).values()) == {None}
    assert browse() == 0 and "Open this address" not in capsys.readouterr().out  # nothing to ask


def test_a_readable_token_file_is_closed(auth: Auth, person: str, browse: Browse, tmp_path: Path) -> None:
    browse()
    storage = tmp_path / "compute" / "storage.db"
    storage.chmod(0o644)
    storage.parent.chmod(0o755)
    globus_app()
    assert stat.S_IMODE(storage.stat().st_mode) == 0o600 and stat.S_IMODE(storage.parent.stat().st_mode) == 0o700


def test_a_missing_consent_is_reported_with_its_command(auth: Auth, person: str, browse: Browse, capsys: Any) -> None:
    browse()
    with pytest.raises(
        LoginNeeded, match=f"consent is missing. Give it: python workflows/login.py --collection {MAPPED}"
    ):
        transfer_client(globus_app(), [MAPPED]).get_endpoint(MAPPED)
    missing = [problem for problem in problems(GUEST, MAPPED, WEB).values() if problem]
    assert len(missing) == 2 and MAPPED in missing[0] and WEB in missing[1]
    assert login.main(["--status", "--collection", MAPPED]) == 1
    assert "MISSING  collection mapped" in capsys.readouterr().out
    assert browse("--collection", MAPPED, "--collection", WEB) == 0
    assert set(problems(GUEST, MAPPED, WEB).values()) == {None}
    assert transfer_client(globus_app(), [MAPPED]).get_endpoint(MAPPED)["display_name"] == "mapped"
    assert str(https_authorizer(globus_app(), WEB).get_authorization_header()).startswith("Bearer ")


def test_a_revoked_login(auth: Auth, person: str, browse: Browse, capsys: Any) -> None:
    browse()
    client = transfer_client(globus_app(), [GUEST])
    auth.expire_tokens()
    auth.forget_refresh_tokens()
    with pytest.raises(LoginNeeded, match="has expired or was revoked. Log in: python workflows/login.py"):
        client.get_endpoint(GUEST)
    assert login.main(["--status"]) == 1
    assert browse() == 0 and set(problems().values()) == {None}


def test_logging_out_revokes_the_tokens(auth: Auth, person: str, browse: Browse, capsys: Any) -> None:
    browse("--collection", WEB)
    header = str(https_authorizer(globus_app(), WEB).get_authorization_header())
    assert login.main(["--logout"]) == 0
    assert "all tokens are revoked" in capsys.readouterr().out
    assert header.removeprefix("Bearer ") not in auth._tokens
    with pytest.raises(LoginNeeded):
        https_authorizer(globus_app(), WEB)
    assert login.main(["--status"]) == 1
    assert login.main(["--logout"]) == 0 and "There was no login" in capsys.readouterr().out


def test_without_a_terminal_there_is_no_prompt(auth: Auth, person: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", type("Pipe", (), {"isatty": lambda self: False})())
    assert login.main([]) == 2
    assert "a login needs a terminal for its code. Run" in capsys.readouterr().err


def test_an_unreachable_globus_is_reported_in_a_line(auth: Auth, account: ServiceAccount, service: HttpService) -> None:
    service.stop()
    ((what, problem),) = problems().items()
    assert what == "login" and str(problem).startswith("Globus is not reached: ")


def test_a_collection_that_is_not_there(auth: Auth, account: ServiceAccount) -> None:
    unknown = MAPPED.replace("b", "d")
    assert "404 EndpointNotFound" in str(problems(unknown)[f"collection {unknown}"])


def test_a_session_that_a_policy_demands(auth: Auth, person: str, browse: Browse, capsys: Any) -> None:
    assert browse() == 0
    capsys.readouterr()
    assert browse("--session", "domain=alcf.anl.gov", "--session", f"policy={GUEST}", "--session", "mfa") == 0
    address = capsys.readouterr().out
    for part in ("single_domain=alcf.anl.gov", f"policies={GUEST}", "mfa=True", "prompt=login"):
        assert part in address
    for wrong in ("domain", "domain=", "prompt=none", "mfa=1"):
        assert login.main(["--session", wrong]) == 2
    assert login.main(["--session", "mfa", "--status"]) == 2


def test_a_service_account_has_no_session(account: ServiceAccount, capsys: Any) -> None:
    assert login.main(["--session", "mfa"]) == 2
    assert "Ask the owner to admit the account, or unset GLOBUS_COMPUTE_CLIENT_ID" in capsys.readouterr().err


# -- secrets ----------------------------------------------------------------------------------------------------


def test_no_secret_is_ever_shown(auth: Auth, person: str, browse: Browse, capsys: Any, caplog: Any) -> None:
    """Nor in the libraries' log at its most verbose level."""
    with caplog.at_level(logging.DEBUG):
        browse("-v", "--collection", MAPPED, "--collection", WEB)
        auth.expire_tokens()
        login.main(["-v", "--status", "--collection", MAPPED])
        held = [*auth._tokens, *auth._refresh]
        login.main(["-v", "--logout"])
    shown = capsys.readouterr()
    assert len(held) >= 6 and "Starting new HTTP connection" in caplog.text
    for secret in held:
        assert secret not in shown.out + shown.err + caplog.text


def test_no_secret_of_an_account_is_ever_shown(account: ServiceAccount, auth: Auth, capsys: Any, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG):
        assert login.main(["-v", "--status", "--collection", WEB]) == 0
        assert login.main([]) == 0
        auth.change_secret(account)
        assert login.main(["-v", "--status"]) == 1
        assert login.main(["--logout"]) == 0
    shown = capsys.readouterr()
    for secret in (account.secret, *auth._tokens):
        assert secret not in shown.out + shown.err + caplog.text


# -- campaigns --------------------------------------------------------------------------------------------------


def test_a_campaigns_collections(tmp_path: Path, auth: Auth, person: str, browse: Browse, capsys: Any) -> None:
    path = tmp_path / "campaign.yaml"
    endpoint = GUEST.replace("a", "e")
    path.write_text(f"""
globus: {{collection: {GUEST}, folder: /data}}
sites:
  here: {{config: local}}
  polaris: {{route: globus, endpoint: {endpoint}, account: ABC, storage_root: /eagle/ABC/cf, python_env: /eagle/ABC/env,
            collection: {MAPPED}, collection_folder: /eagle/ABC/shown, data: /eagle/ABC/records}}
""")
    assert login.collections_of(path) == [GUEST, MAPPED]
    assert browse("--campaign", str(path)) == 0
    assert "collection mapped" in capsys.readouterr().out
    path.write_text("sites: {polaris: {route: globus}}")
    assert login.main(["--status", "--campaign", str(path)]) == 2
    assert "sites.polaris: polaris needs account" in capsys.readouterr().err
    assert login.main(["--status", "--logout"]) == 2


def test_collections_among_scopes() -> None:
    access = "https://auth.globus.org/scopes/{}/data_access"
    transfer = f"urn:all[*{access.format(MAPPED)} *{access.format(WEB)}]"
    assert collections_in([transfer, "openid", f"urn:all[*{access.format(MAPPED)}]"]) == [MAPPED, WEB]
    assert collections_in(["openid", f"https://auth.globus.org/scopes/{WEB}/https"]) == []
