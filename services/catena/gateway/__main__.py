"""Runs the gateway as a process of its own."""

from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.room import main

if __name__ == "__main__":
    main("gateway", GatewayConfig, open_gateway)
