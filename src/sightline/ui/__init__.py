"""A page to chat with the models about pictures, by Gradio. It talks to the server through the public API only.

    mount.py           at /ui of a server, or an application of its own for a server elsewhere
    conversation.py    what is asked and shown: pure
    snippets.py        a request as curl and Python: pure
    asking.py          one question, sent and answered
    page.py            what stands where (the one file that draws with Gradio)
    application.py     Gradio, held to what the page needs
    sign_in.py         keys, by a cookie
    inside.py          the server in the same process, as the client's transport

Gradio is imported when a page is made, and not before.
"""

from __future__ import annotations
