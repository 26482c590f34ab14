"""How well `peek` sees, judged by pictures and words that its training never used.

    shapes.py     figures as signed distances
    lettering.py  words from font outlines
    elsewhere.py  pictures that are none of its world
    drawing.py    scenes to pixels
    files.py      pixels to files: JPEG or PNG, blur, noise, Exif flags
    world.py      scenes whose truth is beyond dispute
    cases.py      what a case is: a conversation with one right answer
    tasks/        the tasks: scenes, question, truth; their floors
    answers.py    when an answer is right
    client.py     asks a running server through the OpenAI SDK
    report.py     accuracy with its uncertainty, conditions, other runs beside it
    tables.py     that as text; sheets.py as pictures

Run it: `python -m training.peek.evaluation --help`. Nothing here may be imported by the training code, nor the other
way round; a test holds that line.
"""
