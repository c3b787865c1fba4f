# SPDX-License-Identifier: Apache-2.0
"""Encoders, decoders and the networks of the methods. Nothing in here knows about data."""
