"""Plugin for nbval: a cell whose magic does not exist fails.

IPython prints about an unknown magic and sends no error message, so nbval takes the cell for a good one. The reply that
ends every cell tells the truth. Load it with `-p tests.nbval_strict` from the root of the repository.
"""

import pytest
from nbval.plugin import IPyNbCell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not isinstance(item, IPyNbCell):
        return (yield)
    kernel, replies = item.parent.kernel, []
    listen = kernel.get_message

    def remember(stream, timeout=None):
        message = listen(stream=stream, timeout=timeout)
        if stream == "shell":
            replies.append(message["content"])
        return message

    kernel.get_message = remember
    try:
        result = yield
    finally:
        del kernel.get_message
    if replies and replies[-1]["status"] == "error" and not item.options["check_exception"]:
        item.raise_cell_error(f"the cell ended with {replies[-1]['ename']}: {replies[-1]['evalue']}")
    return result
