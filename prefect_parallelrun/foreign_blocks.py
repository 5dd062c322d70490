"""Credentials blocks of prefect-aws, prefect-azure and prefect-sqlalchemy, which are known by what they hold."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit


def storage_options_of_foreign(block: object) -> dict[str, Any] | None:
    """Return fsspec's `storage_options` for a block of another collection; None where it is unknown."""
    convert = _BLOCKS.get(type(block).__name__)
    return None if convert is None else convert(block)


def _aws(block: Any) -> dict[str, Any]:
    keys = block.aws_access_key_id, block.aws_secret_access_key, block.aws_session_token
    return _s3(block, *keys)


def _minio(block: Any) -> dict[str, Any]:
    return _s3(block, block.minio_root_user, block.minio_root_password, None)


def _s3(block: Any, key: Any, secret: Any, token: Any) -> dict[str, Any]:
    region = block.region_name and {"region_name": block.region_name}
    return _given(
        key=_plain(key),
        secret=_plain(secret),
        token=_plain(token),
        endpoint_url=block.aws_client_parameters.endpoint_url,
        client_kwargs=region,
    )


def _azure(block: Any) -> dict[str, Any]:
    if block.connection_string is not None:
        return {"connection_string": _plain(block.connection_string)}
    host = urlsplit(block.account_url).hostname or ""
    options = {"account_name": host.partition(".")[0], "account_host": host}
    if block.client_id is None:
        return {**options, "anon": False}  # whoever this machine is to Azure
    secret = _plain(block.client_secret)
    return {
        **options,
        **_given(tenant_id=block.tenant_id, client_id=block.client_id, client_secret=secret),
    }


def _sqlalchemy(block: Any) -> dict[str, Any]:
    info = block.connection_info
    if hasattr(info, "create_url"):
        return {"url": info.create_url().render_as_string(hide_password=False)}
    return {"url": str(info)}


_BLOCKS = {
    "AwsCredentials": _aws,
    "MinIOCredentials": _minio,
    "AzureBlobStorageCredentials": _azure,
    "SqlAlchemyConnector": _sqlalchemy,
}


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
