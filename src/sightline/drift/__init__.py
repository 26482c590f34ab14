"""Drift: whether two engines give the same answer to the same question about the same picture, and if not, why.

questions.py, drawing.py -> what is asked: a directory's pictures, or drawn ones
answers.py               -> what one engine says, greedy, through the service as every client's requests go
compare.py               -> where two answers part and what that looks like; pure
report.py, page.html     -> JSON, and a page with the pictures
"""
