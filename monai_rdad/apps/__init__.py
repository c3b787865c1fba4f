# SPDX-License-Identifier: Apache-2.0
"""Programs: the command line and what its commands do."""
