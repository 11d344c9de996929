"""The MQTT broker as services reach it: where it is, and who they are there."""

import ssl

import paho.mqtt.client as paho
from pydantic import Field, SecretStr

from services.common.runtime.settings import AuthorityFile, ServiceSettings


class MqttSettings(ServiceSettings):
    """Settings of a service that is a client of the broker."""

    mqtt_host: str = Field("127.0.0.1", description="host of the MQTT broker")
    mqtt_port: int = Field(21_883, ge=1, le=65_535, description="port of the MQTT broker")
    mqtt_username: str | None = Field(None, description="user name at the MQTT broker")
    mqtt_password: SecretStr | None = Field(None, description="password at the MQTT broker")
    mqtt_ca: AuthorityFile | None = Field(
        None, description="PEM file of the broker's certificate authority; set: TLS"
    )


def introduce(client: paho.Client, settings: MqttSettings) -> None:
    """Give a client its name and password, and TLS, as the settings say. Before it connects."""
    if settings.mqtt_username is not None:
        secret = settings.mqtt_password
        password = None if secret is None else secret.get_secret_value()
        client.username_pw_set(settings.mqtt_username, password)
    if settings.mqtt_ca is not None:
        client.tls_set_context(ssl.create_default_context(cafile=settings.mqtt_ca))
