"""Conversions between the contract's messages and the house's values: messages stop here."""
