"""Protos and events in and out."""
