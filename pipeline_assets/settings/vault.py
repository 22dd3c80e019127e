"""Secrets out of HashiCorp Vault or OpenBao: one secret of a KV engine, version 2, read as an AppRole.

Its keys are names of settings. Vault isn't asked before settings are read, and hvac is imported only where
VAULT_ADDR is set. A secret that can't be read is an error: it has no default. `model` has the settings, and
says which source wins.
"""

import os
from functools import cache
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, HttpUrl, SecretStr

if TYPE_CHECKING:
    import hvac

TRIES = 4
"""How often a request is sent to a Vault that doesn't answer, or is sealed or busy: 2 s in all, so that a
change of its leader fails no run."""
TIMEOUT = 10
"""Seconds that one answer may take."""


class VaultError(ValueError):
    """Vault can't be used as the settings say; the message names what to do."""


class VaultSettings(BaseModel):
    """Where the secrets are, and as whom to read them. Without `vault_addr` Vault isn't asked."""

    model_config = ConfigDict(frozen=True)

    vault_addr: HttpUrl | None = None
    vault_role_id: SecretStr | None = None
    vault_secret_id: SecretStr | None = None
    """Every process logs in with it: an id that may be used only so many times won't do."""
    vault_namespace: str | None = None
    vault_mount: str = "secret"
    """Where the KV engine is mounted."""
    vault_path: str = "pipeline-assets/dev"
    """The secret's path in the engine; each environment's YAML file names its own."""
    vault_auth_mount: str = "approle"
    """Where AppRole logins are mounted."""


def read_secret(access: VaultSettings) -> dict[str, Any]:
    """The newest version of the secret, read once per process, and again after `forget`.

    Raises:
        VaultError: Vault doesn't answer, refuses the login or the path, or has nothing there; hvac isn't
            installed; or a part of `access` is missing.
    """
    return dict(_read(access))


def forget() -> None:
    """Ask Vault again next time: a secret may have been changed. The login stays as long as it is good."""
    _read.cache_clear()


@cache
def _read(access: VaultSettings) -> dict[str, Any]:
    return _login(access).read()


@cache
def _login(access: VaultSettings) -> "_Login":
    return _Login(access)


# A connection must not be written to by two processes.
os.register_at_fork(after_in_child=_login.cache_clear)


class _Login:
    """A login of this process: renewed while it can be, else made again."""

    def __init__(self, access: VaultSettings) -> None:
        self.access = access
        self.client = _client(access)
        self.renew_at = inf
        self.log_in()

    def log_in(self) -> None:
        """Take a new token."""
        from hvac import exceptions

        role, secret = self.access.vault_role_id, self.access.vault_secret_id
        if role is None or secret is None:
            raise VaultError(
                "VAULT_ADDR is set, so secrets are read from Vault: set VAULT_ROLE_ID and "
                "VAULT_SECRET_ID too, or unset VAULT_ADDR"
            )
        try:
            answer = self._ask(
                self.client.auth.approle.login,
                role.get_secret_value(),
                secret.get_secret_value(),
                use_token=False,
                mount_point=self.access.vault_auth_mount,
            )
        except (exceptions.InvalidRequest, exceptions.Forbidden, exceptions.InvalidPath) as error:
            raise VaultError(
                f"{self._where} refuses the AppRole at {self.access.vault_auth_mount}: check VAULT_ROLE_ID "
                "and VAULT_SECRET_ID; a secret id that ran out is replaced by `vault write -f "
                f"auth/{self.access.vault_auth_mount}/role/<role>/secret-id`"
            ) from error
        self.client.token = answer["auth"]["client_token"]
        self._lasts(answer)

    def read(self) -> dict[str, Any]:
        """The secret's keys and values."""
        from hvac import exceptions

        access = self.access
        path = f"{access.vault_mount}/{access.vault_path}"
        try:
            try:
                self._stay_logged_in()
                answer = self._read()
            except (exceptions.Forbidden, exceptions.InvalidRequest):
                # The token expired or can't be renewed, or the path is denied: with a new token, only a
                # denied path still fails.
                self.log_in()
                answer = self._read()
        except exceptions.Forbidden as error:
            raise VaultError(
                f"{self._where} denies {path}: the AppRole's policy must have "
                f'`path "{access.vault_mount}/data/{access.vault_path}" {{ capabilities = ["read"] }}`'
            ) from error
        except exceptions.InvalidPath as error:
            raise VaultError(
                f"{self._where} has nothing at {path}: write it there with `vault kv put "
                f"-mount={access.vault_mount} {access.vault_path} ...`, or set VAULT_MOUNT and VAULT_PATH"
            ) from error
        found: dict[str, Any] = answer["data"]["data"]
        return found

    def _read(self) -> Any:
        return self._ask(
            self.client.secrets.kv.v2.read_secret_version,
            self.access.vault_path,
            mount_point=self.access.vault_mount,
            raise_on_deleted_version=True,
        )

    def _stay_logged_in(self) -> None:
        """Renew the token once half of its lease is over. After its maximum TTL Vault denies it."""
        if monotonic() >= self.renew_at:
            self._lasts(self._ask(self.client.auth.token.renew_self))

    def _lasts(self, answer: Any) -> None:
        seconds = answer["auth"]["lease_duration"]
        self.renew_at = monotonic() + seconds / 2 if seconds else inf

    def _ask(self, question: Any, *arguments: Any, **options: Any) -> Any:
        import requests
        from hvac import exceptions

        try:
            answer = question(*arguments, **options)
        except (exceptions.Forbidden, exceptions.InvalidRequest, exceptions.InvalidPath):
            raise
        except (requests.RequestException, exceptions.VaultError) as error:
            raise self._no_answer(type(error).__name__) from error
        if not isinstance(answer, dict):  # a page of some other server
            raise self._no_answer(f"{answer.status_code}, and no JSON")
        return answer

    def _no_answer(self, what: str) -> VaultError:
        return VaultError(
            f"{self._where} doesn't answer as Vault does ({what}): see that it runs, is unsealed and is "
            "reached at VAULT_ADDR; VAULT_CACERT names a certificate authority of its own. Nothing starts "
            "without the secrets that are there"
        )

    @property
    def _where(self) -> str:
        return f"Vault at {self.access.vault_addr}"


def _client(access: VaultSettings) -> "hvac.Client":
    try:
        import hvac
    except ImportError:
        raise VaultError(
            "VAULT_ADDR is set, but hvac isn't installed: install pipeline-assets[vault]"
        ) from None
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    client = hvac.Client(
        url=str(access.vault_addr).rstrip("/"),
        token="",  # not that of the person whose shell this is
        namespace=access.vault_namespace,
        timeout=TIMEOUT,
    )
    retry = Retry(
        total=TRIES - 1,
        backoff_factor=0.3,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # a login may be repeated too
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        client.session.mount(scheme, HTTPAdapter(max_retries=retry))
    return client
