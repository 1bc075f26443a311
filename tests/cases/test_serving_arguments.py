"""gemmascope lab -- ARGUMENTS: options that open the server, remove its token or read another configuration are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gemmascope.__main__ import main
from gemmascope.cli.serving import lab_command, require_user
from gemmascope.errors import ServingError

OPENING = [
    "config=x.py", "config=", "f=x", "ip=0.0.0.0", "ip=*", "certfile=x", "keyfile=x", "notebook-dir=/", "preferred-dir=/",
    "ServerApp.config_file=x.py", "JupyterApp.config_file=x.py", "LabApp.config_file=x", "Application.config_file=x",
    "ServerApp.config_file_name=x", "LabServerApp.config_file=x", "ServerApp.ip=*", "ServerApp.local_hostnames=['x']",
    "ServerApp.tornado_settings={'headers':{}}", "ServerApp.cookie_options={}", "ServerApp.allow_origin=*",
    "ServerApp.allow_origin_pat=.*", "ServerApp.allow_remote_access=True", "ServerApp.disable_check_xsrf=True",
    "ServerApp.identity_provider_class=x.Y", "ServerApp.authorizer_class=x.Y", "ServerApp.password=", "ServerApp.token=",
    "ServerApp.allow_unauthenticated_access=True", "ServerApp.login_handler_class=x", "ServerApp.jpserver_extensions={}",
    "ServerApp.extra_services=[]", "ServerApp.root_dir=/", "ServerApp.sock=/tmp/x", "ServerApp.custom_display_url=http://x",
    "ServerApp.allow_credentials=True", "ServerApp.trust_xheaders=True", "ServerApp.base_url=/",
    "ServerApp.get_secure_cookie_kwargs={}", "IdentityProvider.token=", "PasswordIdentityProvider.hashed_password=",
    "PasswordIdentityProvider.password_required=False",
    "LabApp.app_dir=/tmp", "LabApp.user_settings_dir=/tmp", "LabApp.schemas_dir=/tmp", "LabApp.expose_app_in_browser=True",
    "ExtensionApp.config_file=x", "gateway-url=http://x", "GatewayClient.url=http://x", "pylab=inline", "allow-origin=*",
    "ServerApp.ssl_options={}", "ServerApp.x.y=1", "NotebookApp.token=", "KernelSpecManager.kernel_dirs=['/tmp']",
    "Session.key=b''", "serverapp.port.ip=1", "ServerApp.port.ip=*", "MappingKernelManager.kernel_cmd=x",
]  # fmt: skip
ABBREVIATED = [
    "--conf=x",
    "--con=x",
    "--ServerApp.tok=",
    "--ServerApp.allow_or=*",
    "--i=*",
    "--serverapp.ip=*",
    "-f",
    "--",
    "",
]


@pytest.mark.parametrize("option", [*(f"--{one}" for one in OPENING), *ABBREVIATED, "list", "other.ipynb", "workspaces"])
def test_options_that_open_the_server_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, ["--debug", option])


@pytest.mark.parametrize("option", OPENING)
def test_options_that_open_the_server_are_refused_in_every_spelling(option: str, tmp_path: Path) -> None:
    name, _, value = option.partition("=")
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, [f"--{name}", value])
    with pytest.raises(ServingError, match="is not passed on"):
        lab_command(tmp_path, None, ["--ServerApp.port", "9000", f"--{option}"])


@pytest.mark.parametrize("flag", ["--ServerApp.port", "--port"])
def test_an_option_is_not_read_as_the_value_of_another(flag: str, tmp_path: Path) -> None:
    for more in ([flag], [flag, "--debug"], [flag, "--ServerApp.ip=*"]):
        with pytest.raises(ServingError, match="needs a value"):
            lab_command(tmp_path, None, more)


@pytest.mark.parametrize(
    "more",
    [
        ["--debug"], ["--no-browser"], ["--allow-root"], ["--port=9000"], ["--port", "9000"],
        ["--ServerApp.iopub_data_rate_limit=1e9"], ["--ServerApp.iopub_data_rate_limit", "1e9", "--debug"],
        ["--MappingKernelManager.cull_idle_timeout=600"], ["--ZMQChannelsWebsocketConnection.limit_rate=False"],
    ],
)  # fmt: skip
def test_harmless_options_are_passed_on(more: list[str], tmp_path: Path) -> None:
    assert lab_command(tmp_path, None, more)[-len(more) :] == more


def test_running_as_root_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr("gemmascope.cli.serving.serve", lambda command: pytest.fail("it was started"))
    assert main(["lab", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "as root" in message
    assert "gemmascope lab -- --allow-root" in message
    monkeypatch.setattr("gemmascope.cli.serving.serve", lambda command: 0)
    assert main(["lab", str(tmp_path), "--", "--allow-root"]) == 0


def test_other_users_need_no_root_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    require_user([])
    monkeypatch.delattr(os, "geteuid")  # as on Windows
    require_user([])
