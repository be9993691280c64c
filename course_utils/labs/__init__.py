"""Exercises: checks that name the mistake, and the student and instructor versions of the lessons.

- `checks`          `check(id, answer)`, what a lesson calls
- `exercises`       what an exercise is, and where the exercises of a lesson are found (`lesson_NN.py`)
- `answers`         comparing an answer with the truth
- `diagnosis`       saying in which way an answer is off
- `calling`         running a learner's function without letting it disturb anything
- `exercise_cells`  reading and validating the cells of the exercises in a lesson's source
- `exercise_code`   the same for the code in them: stub, check and solution
- `trio`            task, stub and check: the cells of an exercise as a version of the lesson shows them
- `build`           writing the student and the instructor notebooks
"""
