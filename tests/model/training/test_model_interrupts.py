"""Ctrl-C: the first is a request, the second an interrupt."""

import os
import signal
import threading

import pytest

from model.training.interrupts import first_interrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_a_request_and_the_second_raises():
    asked = []
    with pytest.raises(KeyboardInterrupt), first_interrupt(lambda: asked.append("stop")):
        press()
        assert asked == ["stop"]
        press()
    assert asked == ["stop"]


def test_the_previous_handler_is_restored():
    before = signal.getsignal(signal.SIGINT)
    with first_interrupt(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), first_interrupt(lambda: None):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_change_nothing():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with first_interrupt(lambda: None):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
