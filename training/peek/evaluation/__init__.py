"""How well `peek` sees, judged by pictures and words that its training never used.

    drawing.py    scenes to pixels, by signed distances
    world.py      scenes whose truth is beyond dispute
    questions.py  the tasks: scenes, question, truth, floor
    answers.py    when an answer is right
    client.py     asks a running server through the OpenAI SDK
    report.py     accuracy with its uncertainty; the table, the failures, the plot

Run it: `python -m training.peek.evaluation --help`. Nothing here may be imported by the training code, nor the other
way round; a test holds that line.
"""
