"""Bring your own images: folders or npz files of several sites."""
