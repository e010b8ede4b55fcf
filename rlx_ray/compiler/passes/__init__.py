"""Passes that both backends share: plain functions from one IR to the next; valid in, valid out."""
