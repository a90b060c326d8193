"""Release, grade, hand to Gradescope: problem sets made of the book's exercises. The judge never meets a student's code."""
