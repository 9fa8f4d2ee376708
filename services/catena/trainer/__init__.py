"""The trainer: what adapter this data makes."""
