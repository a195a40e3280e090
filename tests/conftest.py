"""What every test relies on."""

import signal

# Started in the background, a process ignores Ctrl-C and hands that down; the tests that press it
# need their children to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
