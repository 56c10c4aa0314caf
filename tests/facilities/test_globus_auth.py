"""Tests of the stand-in of Globus Auth with the real globus_sdk: tokens, renewal, revocation, user login."""

from __future__ import annotations

from collections.abc import Iterator

import globus_sdk
import pytest
import requests
from globus_sdk.scopes import TransferScopes
from globus_sdk.token_storage.validating_token_storage import IdentityMismatchError

from facilities.globus.auth import AUTH_SERVER, COMPUTE_SERVER, TRANSFER_SERVER, Auth, ServiceAccount
from facilities.globus.http import HttpService

COLLECTION = "5b31a2a4-0000-4000-8000-00000000c011"
NATIVE_CLIENT = "5b31a2a4-0000-4000-8000-0000000000aa"


@pytest.fixture
def service() -> Iterator[HttpService]:
    with HttpService() as running:
        yield running


@pytest.fixture
def auth(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> Auth:
    stand_in = Auth(service)
    service.route("GET", "/v0.10/endpoint_search", lambda request: stand_in.token_of(request, TRANSFER_SERVER).scope)
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", service.url)
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", service.url)
    return stand_in


def client_app(account: ServiceAccount) -> globus_sdk.ClientApp:
    config = globus_sdk.GlobusAppConfig(token_storage="memory")
    return globus_sdk.ClientApp("test", client_id=account.client_id, client_secret=account.secret, config=config)


def user_app(auth: Auth, token_storage: str = "memory") -> globus_sdk.UserApp:
    class Browser(globus_sdk.login_flows.LoginFlowManager):
        def run_login_flow(self, auth_parameters: globus_sdk.gare.GlobusAuthorizationParameters):
            code = auth.log_in(
                self._get_authorize_url(auth_parameters, f"{self.login_client.base_url}v2/web/auth-code")
            )
            return self.login_client.oauth2_exchange_code_for_tokens(code)

    client = globus_sdk.NativeAppAuthClient(NATIVE_CLIENT)
    manager = Browser(client, request_refresh_tokens=True)
    config = globus_sdk.GlobusAppConfig(
        token_storage=token_storage, request_refresh_tokens=True, login_flow_manager=manager
    )
    return globus_sdk.UserApp("test", login_client=client, config=config)


def granted(service: HttpService) -> int:
    return service.count_calls("/oauth2/token$")


def test_a_service_account_gets_a_token_for_each_service(auth: Auth) -> None:
    account = auth.add_service_account()
    client = globus_sdk.ConfidentialAppAuthClient(account.client_id, account.secret)
    compute = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"
    answer = client.oauth2_client_credentials_tokens([TransferScopes.all, compute, "openid"])
    assert set(answer.by_resource_server) == {TRANSFER_SERVER, COMPUTE_SERVER, AUTH_SERVER}
    assert answer.by_resource_server[TRANSFER_SERVER]["scope"] == str(TransferScopes.all)
    token = globus_sdk.AccessTokenAuthorizer(answer.by_resource_server[AUTH_SERVER]["access_token"])
    identity = globus_sdk.AuthClient(authorizer=token).userinfo()
    assert identity["sub"] == account.client_id
    assert [row["sub"] for row in identity["identity_set"]] == [account.client_id]


def test_wrong_or_changed_secrets_are_refused(auth: Auth) -> None:
    account = auth.add_service_account()
    auth.change_secret(account)
    for wrong in (account, ServiceAccount(account.client_id, "guess"), ServiceAccount(NATIVE_CLIENT, "")):
        with pytest.raises(globus_sdk.AuthAPIError) as refused:
            globus_sdk.ConfidentialAppAuthClient(wrong.client_id, wrong.secret).oauth2_client_credentials_tokens(
                "openid"
            )
        assert refused.value.http_status == 401


def test_an_expired_token_is_renewed_silently(auth: Auth, service: HttpService) -> None:
    client = globus_sdk.TransferClient(app=client_app(auth.add_service_account()))
    assert client.get("/v0.10/endpoint_search").http_status == 200
    auth.expire_tokens()
    assert client.get("/v0.10/endpoint_search").http_status == 200
    assert granted(service) == 2
    assert [call.status for call in service.calls if "search" in call.path] == [200, 401, 200]


def test_lifetimes_are_reported_and_kept(auth: Auth, service: HttpService) -> None:
    requests.post(f"{service.url}/_ctl/auth", json={"lifetime_s": 0})
    account = auth.add_service_account()
    client = globus_sdk.ConfidentialAppAuthClient(account.client_id, account.secret)
    answer = client.oauth2_client_credentials_tokens(TransferScopes.all)
    assert answer["expires_in"] == 0
    bearer = {"Authorization": f"Bearer {answer['access_token']}"}
    assert requests.get(f"{service.url}/v0.10/endpoint_search", headers=bearer).status_code == 401


def test_a_revoked_token_is_refused_and_a_token_is_for_one_service_only(auth: Auth, service: HttpService) -> None:
    account = auth.add_service_account()
    client = globus_sdk.ConfidentialAppAuthClient(account.client_id, account.secret)
    tokens = client.oauth2_client_credentials_tokens([TransferScopes.all, "openid"]).by_resource_server
    transfer, identity = (tokens[server]["access_token"] for server in (TRANSFER_SERVER, AUTH_SERVER))

    def search(token: str) -> int:
        bearer = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{service.url}/v0.10/endpoint_search", headers=bearer).status_code

    assert (search(transfer), search(identity)) == (200, 401)
    client.oauth2_revoke_token(transfer)
    assert search(transfer) == 401


def test_a_service_account_consents_by_asking(auth: Auth) -> None:
    account = auth.add_service_account()
    client = globus_sdk.TransferClient(app=client_app(account))
    client.add_app_data_access_scope(COLLECTION)
    assert not auth.consents.has_data_access(account.client_id, account.client_id, COLLECTION)
    client.get("/v0.10/endpoint_search")
    assert auth.consents.has_data_access(account.client_id, account.client_id, COLLECTION)


def test_a_person_logs_in_once_and_refresh_tokens_carry_on(auth: Auth, service: HttpService) -> None:
    person = auth.add_person("ada@example.org")
    client = globus_sdk.TransferClient(app=user_app(auth))
    client.add_app_data_access_scope(COLLECTION)
    assert client.get("/v0.10/endpoint_search").http_status == 200
    assert auth.consents.has_data_access(person, NATIVE_CLIENT, COLLECTION)
    auth.person = None  # the browser is closed
    auth.expire_tokens()
    assert client.get("/v0.10/endpoint_search").http_status == 200
    assert granted(service) == 2


def test_a_person_whose_refresh_tokens_are_gone_has_to_log_in_again(auth: Auth) -> None:
    auth.add_person("ada@example.org")
    app = user_app(auth)
    client = globus_sdk.TransferClient(app=app)
    client.get("/v0.10/endpoint_search")
    auth.expire_tokens()
    auth.forget_refresh_tokens()
    with pytest.raises(globus_sdk.AuthAPIError, match="invalid_grant"):
        client.get("/v0.10/endpoint_search")


def test_another_person_is_noticed(auth: Auth) -> None:
    auth.add_person("ada@example.org")
    app = user_app(auth)
    app.login()
    auth.add_person("eve@example.org")
    with pytest.raises(IdentityMismatchError):
        app.login(force=True)


def test_a_code_is_good_once_and_only_with_its_verifier(auth: Auth) -> None:
    auth.add_person("ada@example.org")
    flows = [globus_sdk.NativeAppAuthClient(NATIVE_CLIENT) for _ in range(2)]
    for flow in flows:
        flow.oauth2_start_flow(requested_scopes="openid", refresh_tokens=True)
    code = requests.get(flows[0].oauth2_get_authorize_url()).json()["code"]
    assert "refresh_token" in flows[0].oauth2_exchange_code_for_tokens(code).data
    for flow, used in ((flows[0], code), (flows[1], auth.log_in(flows[0].oauth2_get_authorize_url()))):
        with pytest.raises(globus_sdk.AuthAPIError, match="invalid_grant"):
            flow.oauth2_exchange_code_for_tokens(used)
