"""Turns work into events: agents, their model calls and relayed replies. No HTTP server here."""
