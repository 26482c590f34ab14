"""The OpenAPI document.

operations.py   a row for each route
document.py     the document, made of the rows
openapi.json    as it was made last: `python docs/generate.py`
page.py         the page that shows it
served.py       GET /openapi.json and GET /docs
"""
